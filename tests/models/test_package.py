"""The package hands names out on first touch, and loads no framework before."""

import subprocess
import sys

import pytest

from ellzero import models


def test_importing_loads_no_framework():
    code = (
        "import sys, ellzero.models as m; dir(m); from ellzero.models import Tokenizer, train_tokenizer\n"
        "assert not {'torch', 'transformers', 'jaxtyping'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", models.__all__)
def test_every_listed_name_is_there(name):
    value = getattr(models, name)
    assert name in dir(models)
    assert value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="GPT"):
        _ = models.GPT
