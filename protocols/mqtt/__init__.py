"""MQTT 3.1, 3.1.1 and 5.0: packets, codec and the state machine of a connection."""
