"""Pickled weights, converted without running what a pickle may hold."""

import jax.numpy as jnp
import numpy as np
import pytest

import mwork_jax as mw
from mwork_jax.errors import InputError
from mwork_jax.load.to_safetensors import main, to_safetensors
from mwork_jax.neurons import NeuronMask
from support.tiny import pair, tokens, torch


@pytest.fixture
def pickled(tmp_path):
    """A model folder as older versions of transformers wrote it, in two files."""
    both = pair("llama", 2)
    both.hf.config.save_pretrained(tmp_path)
    tensors = list(both.hf.state_dict().items())
    for number, part in enumerate((tensors[:5], tensors[5:]), 1):
        torch.save(dict(part), tmp_path / f"pytorch_model-{number:05}-of-00002.bin")
    return tmp_path


def test_a_converted_folder_is_the_model(pickled, capsys):
    with pytest.raises(
        InputError, match=r"can hold code and is not read: `python -m mwork_jax.load.to_safetensors \S+` converts it"
    ):
        mw.load_model(pickled)
    assert main([str(pickled)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    model, ids = mw.load_model(pickled, dtype="float32"), jnp.asarray(tokens(1, 9))
    keep = NeuronMask.keep_all(model.config)
    np.testing.assert_array_equal(mw.forward(model, ids, keep), mw.forward(pair("llama", 2).model, ids, keep))
    with pytest.raises(InputError, match="is there already"):
        to_safetensors(pickled)


def test_a_second_file_that_is_bad_leaves_none_of_the_first(pickled):
    (pickled / "pytorch_model-00002-of-00002.bin").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"00002\.bin: holds something else than weights"):
        to_safetensors(pickled)
    assert not list(pickled.glob("*.safetensors*"))


def test_bfloat16_keeps_its_bits(tmp_path):
    from safetensors.torch import load_file

    tensor = torch.randn(3, 4).to(torch.bfloat16)
    torch.save({"a": tensor}, tmp_path / "pytorch_model.bin")
    (path,) = to_safetensors(tmp_path)
    assert torch.equal(load_file(path)["a"], tensor)


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    import pickle

    mark = tmp_path / "ran"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Runs(str(mark))}))
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "holds something else than weights" in error
    assert error.count("\n") == 1
    assert not mark.exists()
    assert not list(tmp_path.glob("*.safetensors"))
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="something else than tensors by name"):
        to_safetensors(tmp_path)
    with pytest.raises(InputError, match="nothing to convert"):
        to_safetensors(tmp_path / "empty")
