"""Write the real code into the quotes of the documentation: ``python tools/quote.py``; a test holds them equal."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("test_docs", ROOT / "tests/conformance/test_docs.py")
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)

for page in docs.PAGES:
    text = page.read_text()
    page.write_text(docs.QUOTE.sub(lambda m: f"<!-- quote: {m[1]} -->\n```python\n{docs.quoted(m[1])}```", text))
