"""Draw the README's picture: the frontier of the report that ``make demo`` made. Needs Chromium and its driver.

python tools/picture.py [REPORT.html] [OUT.png]
"""

import base64
import shutil
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait


def main(report: str = "runs/demo/regression/report.html", out: str = "docs/images/frontier.png") -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": 900, "height": 900, "deviceScaleFactor": 1.5, "mobile": False})  # fmt: skip
        browser.get(Path(report).resolve().as_uri())
        WebDriverWait(browser, 20).until(lambda b: b.execute_script("return document.documentElement.dataset.drawn"))
        browser.execute_script("document.querySelectorAll('.modebar').forEach(bar => bar.remove())")
        place = browser.execute_script("return document.getElementById('frontier').getBoundingClientRect().toJSON()")
        clip = {"x": place["x"], "y": place["y"], "width": place["width"], "height": place["height"], "scale": 1}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
