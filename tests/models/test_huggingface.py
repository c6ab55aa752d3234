"""GPT-2, Llama and BERT folders, written here by transformers: loaded without a hub, and read out at every site."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from ellzero.errors import InputError, MissingExtraError
from ellzero.models import ActivationStream, TransformerConfig, load_model, save, train_tokenizer
from ellzero.models import huggingface as module
from ellzero.models.attach import attach
from ellzero.models.sites import locate

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["a small text of a few words", "words", "another text with more words than the first one has , so there"]
WORDS = sorted({word for text in TEXTS for word in text.split()})
SPECIAL = {
    "gpt2": {"bos_token": "<s>", "eos_token": "<s>", "unk_token": "<unk>"},
    "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "bert": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "<unk>"},
}


def tokenizer(family):
    special = SPECIAL[family]
    names = ["<filler>", *dict.fromkeys(special.values())]  # so that token 0, our padding, is none of them
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate([*names, *WORDS])}, unk_token="<unk>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)


def network(family, coder):
    sizes = {"vocab_size": len(coder), "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    wide = {
        "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 32, "initializer_range": 0.5,
    }  # fmt: skip
    if family == "gpt2":
        config = transformers.GPT2Config(
            n_embd=16, n_layer=3, n_head=2, n_positions=32, initializer_range=0.5, **sizes
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)
    if family == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=1, **wide, **sizes))
    return transformers.BertForMaskedLM(transformers.BertConfig(**wide, **sizes))


BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers", "bert": "bert.encoder.layer"}
FAMILIES = tuple(BLOCKS)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model"
    coder = tokenizer(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network(request.param, coder).save_pretrained(path)
    coder.save_pretrained(path)
    return request.param, path


def test_the_folder_is_loaded_with_its_head_and_tokenizer(folder):
    family, path = folder
    model, coder = load_model(path)
    assert type(model).__name__ == {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}.get(
        family, "BertForMaskedLM"
    )
    assert not model.training
    assert len(coder) == model.config.vocab_size
    assert coder.encode(TEXTS[0], add_special_tokens=False)


def special_ids(family, coder):
    if family == "bert":
        return [coder.cls_token_id], [coder.sep_token_id]
    return [coder.bos_token_id], []


@pytest.mark.parametrize("layer", [1, -1])
def test_residual_rows_are_the_hidden_states(folder, layer):
    """Against ``output_hidden_states`` of each text alone: no padding, no special token, every document known."""
    family, path = folder
    model, coder = load_model(path)
    stream = ActivationStream(model, hook=f"layers.{layer}", texts=TEXTS, tokenizer=coder, sequences=3, batch_size=4)
    assert stream.name == f"{BLOCKS[family]}.{layer % 3}"
    rows, documents = stream.collect(return_documents=True)
    before, after = special_ids(family, coder)
    base = model.base_model
    for d, text in enumerate(TEXTS):
        tokens = coder.encode(text, add_special_tokens=False)
        with torch.no_grad():
            whole = torch.tensor([[*before, *tokens, *after]])
            states = base(whole, output_hidden_states=True).hidden_states
        want = states[layer % 3 + 1][0, len(before) : len(before) + len(tokens)].numpy()
        if layer == -1 and family != "bert":  # there the last hidden state has passed the final norm
            norm = base.ln_f if family == "gpt2" else base.norm
            rows_here = norm(torch.from_numpy(rows[documents == d])).detach().numpy()
        else:
            rows_here = rows[documents == d]
        distance = np.abs(rows_here[:, None] - want[None]).max(-1)
        assert rows_here.shape == want.shape
        assert distance[linear_sum_assignment(distance)].max() < 1e-4


@pytest.mark.parametrize("site", ["residual", "mlp", "attention"])
def test_sites_of_a_single_token(folder, site):
    """A module watched by a hook of torch's own gives the same row as the stream."""
    _, path = folder
    model, _ = load_model(path)
    name = locate(model, "layers.1", site)
    found = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda m, i, out: found.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(torch.tensor([[7, 5]]))
    handle.remove()
    rows = ActivationStream(model, hook="layers.1", site=site, tokens=[[7, 5]], batch_size=2, buffer=2).collect()
    np.testing.assert_allclose(rows[rows[:, 0].argsort()], found[0][0][found[0][0][:, 0].argsort()], atol=1e-5)


def test_attention_and_mlp_are_what_the_block_adds(folder):
    """GPT-2 and Llama: before + attention + mlp = after; BERT's norms: norm(norm(before + a) + m) = after."""
    family, path = folder
    model, _ = load_model(path)

    def row(hook, site):
        return torch.from_numpy(
            ActivationStream(model, hook=hook, site=site, tokens=[[7]], batch_size=1, buffer=1).collect()
        )

    before, after = row("layers.0", "residual"), row("layers.1", "residual")
    attention, mlp = row("layers.1", "attention"), row("layers.1", "mlp")
    if family == "bert":
        block = model.bert.encoder.layer[1]
        want = block.output.LayerNorm(block.attention.output.LayerNorm(before + attention) + mlp)
    else:
        want = before + attention + mlp
    torch.testing.assert_close(after, want.detach(), atol=1e-5, rtol=1e-5)


def test_long_texts_are_cut_with_special_tokens_around_each_window(folder):
    family, path = folder
    model, coder = load_model(path)
    stream = ActivationStream(model, hook="layers.0", texts=TEXTS, tokenizer=coder, context=5)
    before, after = special_ids(family, coder)
    for window in stream._windows:
        assert window.tokens[: len(before)].tolist() == before
        assert window.tokens[len(window.tokens) - len(after) :].tolist() == after
        assert len(window.tokens) <= 5
    assert stream.rows == sum(len(coder.encode(text, add_special_tokens=False)) for text in TEXTS)
    everything = ActivationStream(model, hook="layers.0", texts=TEXTS, tokenizer=coder, context=5, drop_bos=False)
    assert everything.rows == stream.rows + len(stream._windows) * (len(before) + len(after))


def test_splicing_into_a_block_changes_the_logits_and_removing_restores_them(folder):
    _, path = folder
    model, _ = load_model(path)
    x = torch.tensor([[7, 5, 6]])
    with torch.no_grad():
        before = model(x).logits
        for site in ("residual", "mlp", "attention"):
            with attach(model, {locate(model, "layers.1", site): lambda h: h * 0.5}) as handle:
                assert not torch.equal(model(x).logits, before)
            assert handle.report()[0].calls == 1
            with attach(model, {locate(model, "layers.1", site): lambda h: h * 0.5}, error_term=True):
                torch.testing.assert_close(model(x).logits, before, atol=1e-4, rtol=1e-4)
            assert torch.equal(model(x).logits, before)


def test_a_folder_without_tokenizer_gives_none(folder, tmp_path):
    _, path = folder
    model, _ = load_model(path)
    model.save_pretrained(tmp_path / "bare")
    again, coder = load_model(tmp_path / "bare")
    assert coder is None
    assert torch.equal(again(torch.tensor([[5]])).logits, model(torch.tensor([[5]])).logits)


def test_our_own_files_and_the_reference_load_too(tmp_path):
    coder = train_tokenizer(TEXTS, 270)
    model = TransformerConfig(coder.vocabulary, width=8, depth=1, heads=2, key_heads=1, hidden=8, context=8).build()
    save(tmp_path / "m.safetensors", model, {"tokenizer": coder.to_json()})
    again, same = load_model(tmp_path / "m.safetensors")
    assert same == coder
    assert torch.equal(again.embedding.weight, model.embedding.weight)
    save(tmp_path / "n.safetensors", model)
    assert load_model(tmp_path / "n.safetensors")[1] is None
    reference, _ = load_model("reference")
    assert reference.config.depth == 4


def test_pickled_weights_are_refused(folder, tmp_path):
    _, path = folder
    model, _ = load_model(path)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="model: cannot load"):
        load_model(tmp_path)


def test_bad_places(folder, tmp_path, monkeypatch):
    _, path = folder
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="there is nothing at"):
        load_model(tmp_path / "absent")
    with pytest.raises(InputError, match="model: got 3"):
        load_model(3)
    with pytest.raises(InputError, match="model: got ''"):
        load_model("")
    with pytest.raises(InputError, match="cannot load"):
        load_model("nobody/has-this-model")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"model_type": "gp')
    with pytest.raises(InputError, match="cannot load"):
        load_model(tmp_path / "torn")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": "no-such-family"}))
    with pytest.raises(InputError, match="cannot load"):
        load_model(tmp_path / "odd")
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match="cannot load"):
            load_model(path)
    finally:
        weights.write_bytes(whole)

    def absent(name, extra, purpose=None):
        raise MissingExtraError(f"{name} is not installed: pip install 'ellzero[{extra}]'")

    monkeypatch.setattr(module, "require", absent)
    with pytest.raises(MissingExtraError, match=r"ellzero\[hf\]"):
        load_model(path)


def test_a_folder_that_names_no_class_gives_the_bare_model(folder, tmp_path):
    _, path = folder
    model, _ = load_model(path)
    model.base_model.save_pretrained(tmp_path)
    note = json.loads((tmp_path / "config.json").read_text())
    note.pop("architectures")
    (tmp_path / "config.json").write_text(json.dumps(note))
    bare, _ = load_model(tmp_path)
    assert type(bare) is type(model.base_model)
    x = torch.tensor([[7, 5]])
    torch.testing.assert_close(bare(x).last_hidden_state, model.base_model(x).last_hidden_state)
    assert locate(bare, "layers.1", "mlp") in dict(bare.named_modules())


def test_loading_shows_no_progress_bar(folder, capfd):
    _, path = folder
    capfd.readouterr()
    load_model(path)
    shown = capfd.readouterr()
    assert "%" not in shown.out + shown.err
    assert transformers.utils.logging.is_progress_bar_enabled()


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "Odd"}}'])
def test_a_torn_tokenizer_is_refused(folder, tmp_path, content):
    _, path = folder
    load_model(path)[0].save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer of"):
        load_model(tmp_path)


def test_a_tokenizer_of_another_model_is_noticed(folder):
    _, path = folder
    model, _ = load_model(path)
    with pytest.raises(InputError, match="whose tokenizer"):
        ActivationStream(model, hook="layers.0", texts=TEXTS, tokenizer=train_tokenizer(TEXTS, 270))
