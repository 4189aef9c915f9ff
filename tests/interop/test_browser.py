"""A real browser: headless Chromium on the node's own pages, with ganglion.js and with MQTT.js.

Screenshots are left in ``.reports/`` for whoever wants to look.
"""

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.interop.test_js_client import NODE, PROGRAM, address
from tests.support import Daemon, start_daemon

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / ".reports"
CHROMIUM = "/usr/bin/chromium"
WIDTH, HEIGHT = 900, 700
EMPTY_PICTURE_BYTES = 5000
"""An empty page of this size is a PNG of some 3,000 bytes."""


@pytest.fixture(scope="module")
def node() -> Iterator[Daemon]:
    """A node with a web listener."""
    with start_daemon("--web", "127.0.0.1:0") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; its sandbox does not work for root, and these pages are ours."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own; an error on it that nobody catches fails the test."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


def url_of(node: Daemon, path: str = "/") -> str:
    """A page of the node."""
    return f"http://127.0.0.1:{node.ports['web']}{path}"


def photograph(page: Page, name: str, *shown: str) -> None:
    """Leave a screenshot, on which these texts can be seen, and nothing sticks out to the side."""
    for text in shown:
        expect(page.get_by_text(text).last).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    REPORTS.mkdir(exist_ok=True)
    picture = page.screenshot(path=REPORTS / f"{name}.png")
    assert picture[12:24] == b"IHDR" + struct.pack("!II", WIDTH, HEIGHT)
    assert len(picture) > EMPTY_PICTURE_BYTES


def test_landing_page(node: Daemon, page: Page) -> None:
    """The landing page shows that the node is alive, publishes and subscribes."""
    page.goto(url_of(node))
    expect(page.locator("#state")).to_have_text("open")
    expect(page.locator("#node")).to_contain_text("ganglion/")
    page.get_by_role("button", name="Subscribe").click()
    expect(page.locator("#subscribed")).to_have_text("Subscribed to hello/#.")
    page.get_by_label("Message").fill("<b>from a browser</b>")
    page.get_by_role("button", name="Publish").click()
    expect(page.locator("#receipt")).to_contain_text("1 subscribers")
    row = page.locator("#messages tr")
    expect(row).to_contain_text("<b>from a browser</b>")  # as text, and not as HTML
    assert row.locator("b").count() == 0
    page.get_by_label("Topic", exact=True).fill("$SYS/no")
    page.get_by_role("button", name="Publish").click()
    expect(page.locator("#receipt.bad")).to_contain_text("belong to the node")
    photograph(
        page, "landing-page", "Subscribed to hello/#.", "belong to the node", "from a browser"
    )


def test_landing_page_with_a_password(tmp_path: Path, page: Page) -> None:
    """Where names are asked for the page says so, and takes one."""
    users = tmp_path / "users"
    users.write_text(f"ada:{PasswordHasher(1, 8, 1).hash('sesame')}\n")
    users.chmod(0o600)
    config = f'access.users = "{users}"\n[[rules]]\neffect = "allow"\ntopics = "#"\n'
    with start_daemon("--web", "127.0.0.1:0", config=config) as node:
        page.goto(url_of(node))
        expect(page.locator("#state")).to_have_text("closed")
        expect(page.get_by_label("Password")).to_be_visible()
        page.get_by_role("button", name="Publish").click()
        expect(page.locator("#receipt.bad")).to_contain_text("There is no connection")
        page.get_by_label("User").fill("ada")
        for password, outcome in (("wrong", "name or password is wrong"), ("sesame", "as ada")):
            page.get_by_label("Password").fill(password)
            page.get_by_role("button", name="Connect").click()
            expect(page.locator("#node")).to_contain_text(outcome)
        page.get_by_role("button", name="Publish").click()
        expect(page.locator("#receipt")).to_contain_text("Went to 0 subscribers")
        photograph(page, "landing-page-as-ada", "as ada", "Went to 0 subscribers")


def test_live_order(node: Daemon, page: Page) -> None:
    """The example: an order whose status arrives live, from a shop that runs in Node."""
    page.goto(url_of(node, "/js/order.html"))
    page.get_by_role("button", name="Order").click()
    expect(page.locator("#answer")).to_have_text("The shop is closed.")
    shop = ROOT / "examples" / "live-order" / "shop.mjs"
    with subprocess.Popen([PROGRAM, shop, address(node), "20"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"the shop is open\n"
        page.get_by_role("button", name="Order").click()
        expect(page.locator("#state")).to_have_text("delivered")
        expect(page.locator("#steps li").last).to_contain_text("delivered")
        photograph(page, "live-order", "delivered")
        process.terminate()


def test_live_order_with_python_services(page: Page) -> None:
    """The same page on five Python services: an order that goes well, and one that does not."""
    with start_daemon("--web", "127.0.0.1:0", "--native", "127.0.0.1:0") as node:
        url = f"ganglion://127.0.0.1:{node.ports['native']}"
        command = [sys.executable, "-m", "examples.orders", url]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"running: order, stock")
            page.goto(url_of(node, "/js/order.html"))
            page.get_by_role("button", name="Order").click()
            expect(page.locator("#state")).to_have_text("on its way")
            photograph(page, "live-order-python")
            page.get_by_label("What would you like?").fill("a unicorn")
            page.get_by_role("button", name="Order").click()
            expect(page.locator("#state")).to_have_text("sold out")
            process.terminate()
            assert process.wait(20) == 0


def test_mqtt_js_in_the_browser(node: Daemon, page: Page) -> None:
    """MQTT.js, unmodified, over WebSocket: QoS 0, 1 and 2, MQTT 3.1.1 and 5."""
    bundle = NODE / "node_modules" / "mqtt" / "dist" / "mqtt.esm.js"
    page.route("**/js/mqtt.esm.js", lambda route: route.fulfill(path=bundle))
    page.goto(url_of(node))
    for version in (4, 5):
        payloads = page.evaluate(
            """async ([url, version]) => {
                const { default: mqtt } = await import("/js/mqtt.esm.js");
                const client = await mqtt.connectAsync(url, { protocolVersion: version });
                const came = [];
                const all = new Promise((resolve) => client.on("message", (topic, payload) => {
                    came.push(`${topic} ${payload}`);
                    if (came.length === 3) resolve();
                }));
                await client.subscribeAsync("browser/#", { qos: 2 });
                for (const qos of [0, 1, 2]) {
                    await client.publishAsync(`browser/${qos}`, "hi", { qos });
                }
                await all;
                await client.endAsync();
                return came;
            }""",
            [url_of(node, "/mqtt").replace("http", "ws"), version],
        )
        assert sorted(payloads) == ["browser/0 hi", "browser/1 hi", "browser/2 hi"]


@pytest.mark.parametrize(("path", "protocol"), [("/ws", "ganglion.json"), ("/mqtt", "mqtt")])
def test_other_sites_are_kept_out(node: Daemon, page: Page, path: str, protocol: str) -> None:
    """A page of another site cannot use the browser of somebody inside to reach the node."""
    page.route(
        "http://elsewhere.example/",
        lambda route: route.fulfill(body="<title>x</title>", content_type="text/html"),
    )
    page.goto("http://elsewhere.example/")
    outcome = page.evaluate(
        """([url, protocol]) => new Promise((resolve) => {
            const socket = new WebSocket(url, protocol);
            socket.onopen = () => resolve("open");
            socket.onerror = () => resolve("refused");
        })""",
        [url_of(node, path).replace("http", "ws"), protocol],
    )
    assert outcome == "refused"
