"""Tests mirror the tree; conformance/, interop/ and faults/ stand beside the mirror."""
