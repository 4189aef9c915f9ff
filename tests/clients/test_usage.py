"""The program that uses the API as users write it runs, under trio and under asyncio."""

import ganglion
from ganglion.testing import RunningBroker
from tests.clients.backends import under_each
from tests.clients.usage import use


@under_each
async def test_the_program_runs(broker: RunningBroker) -> None:
    """Every call in it does what it says there; type checkers have read it, too."""
    await use(broker.native_url)


def test_every_public_part_says_what_it_is() -> None:
    """Each public method and property of each exported class has a docstring."""
    silent: list[str] = []
    for name in ganglion.__all__:
        value = getattr(ganglion, name)
        if not isinstance(value, type):
            continue
        for part, member in vars(value).items():
            inner = member.fget if isinstance(member, property) else member
            inner = getattr(inner, "__func__", inner)
            is_code = callable(inner) and hasattr(inner, "__code__")
            if is_code and not part.startswith("_") and not inner.__doc__:
                silent.append(f"{name}.{part}")
    assert silent == []
