"""The score: against plain Python, over windows, batches and ranks, and from the packed bytes."""

import io
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from refusals import refused
from torch import Tensor

from pgolf_model.codec.pack import pack_model, unpack_model
from pgolf_model.config import EvalConfig, ModelConfig, QuantConfig
from pgolf_model.data.batches import ByteTable, byte_table
from pgolf_model.distributed import DistEnv
from pgolf_model.evaluate import Score, evaluate_artifact, load_model, score
from pgolf_model.model.gpt import GPT, build_model
from pgolf_model.quant.quantize import quantize_state

SENTENCES = (
    "The lake froze early that year, and nobody skated on it.",
    "Prices rose by 3.5 % in May; the bank had expected 2 %.",
    "«Où est la gare ?» demanda-t-elle en souriant.",
    "Use `print(x)` to see the value of x.",
    "Zürich, 东京 and São Paulo are cities 🙂.",
    "It isn't raining. It is snowing!",
    "Call 555-0199 before 10 a.m. or write to us.",
    "She read the letter twice, folded it, and put it away.",
)
ALONE = DistEnv(rank=0, world_size=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small tokenizer with the challenge's settings; characters that are not ASCII fall back to bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in SENTENCES if text.isascii()] * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        character_coverage=0.999,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return str(path)


@pytest.fixture(scope="module")
def processor(tokenizer: str) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=tokenizer)


@pytest.fixture(scope="module")
def table(tokenizer: str, processor: sentencepiece.SentencePieceProcessor) -> ByteTable:
    return byte_table(tokenizer, processor.vocab_size())


@pytest.fixture(scope="module")
def tokens(processor: sentencepiece.SentencePieceProcessor) -> Tensor:
    """BOS and the pieces of every sentence, as a shard holds them."""
    ids = [token for text in SENTENCES for token in (processor.bos_id(), *processor.encode(text))]
    return torch.tensor(ids, dtype=torch.int32).to(torch.uint16)


class Bigram:
    """A language model that sees one token back, in float64: windows and batches cannot change its losses."""

    def __init__(self, vocab_size: int) -> None:
        generator = torch.Generator().manual_seed(5)
        self.logits = torch.randn(vocab_size, vocab_size, generator=generator, dtype=torch.float64)

    def token_losses(self, ids_BT: Tensor, targets_BT: Tensor, /) -> Tensor:
        rows = self.logits[ids_BT].log_softmax(-1)
        return -rows.gather(-1, targets_BT[..., None])[..., 0]


def plain_nats(logits: list[float], target: int) -> float:
    """Cross-entropy by hand."""
    peak = max(logits)
    return math.log(math.fsum(math.exp(x - peak) for x in logits)) + peak - logits[target]


def plain_bytes(processor: sentencepiece.SentencePieceProcessor) -> int:
    """Bytes of the text that was really encoded, without the byte table."""
    return sum(len(processor.decode(processor.encode(text)).encode("utf-8")) for text in SENTENCES)


def test_bpb_agrees_with_plain_python(
    processor: sentencepiece.SentencePieceProcessor, table: ByteTable, tokens: Tensor
) -> None:
    """Decoded text counted in UTF-8 and a log-softmax by hand give the same bits per byte to 1e-9."""
    model = Bigram(processor.vocab_size())
    ids = tokens.tolist()
    nats = [plain_nats(model.logits[p].tolist(), t) for p, t in pairwise(ids)]
    num_bytes = plain_bytes(processor)
    result = score(model, tokens, table, EvalConfig(seq_len=len(ids) - 1), ALONE)
    assert result.tokens == len(ids) - 1
    assert result.bytes == num_bytes
    assert result.val_loss == pytest.approx(math.fsum(nats) / len(nats), rel=1e-9)
    assert result.val_bpb == pytest.approx(math.fsum(nats) / math.log(2) / num_bytes, rel=1e-9)


def test_bpb_of_a_real_model_agrees_with_plain_python(
    processor: sentencepiece.SentencePieceProcessor, table: ByteTable, tokens: Tensor
) -> None:
    """The same with a float64 GPT, window by window: no window sees its neighbour."""
    config = ModelConfig(
        vocab_size=processor.vocab_size(), num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, embed_init_std=0.5
    )
    model = build_model(config, seed=0).double().eval()
    seq_len = 16
    num_windows = (len(tokens) - 1) // seq_len
    ids = tokens.tolist()
    nats = []
    for start in range(0, num_windows * seq_len, seq_len):
        with torch.inference_mode():
            rows = model.logits(torch.tensor([ids[start : start + seq_len]]))[0].tolist()
        targets = ids[start + 1 : start + seq_len + 1]
        nats += [plain_nats(row, target) for row, target in zip(rows, targets, strict=True)]
    result = score(model, tokens, table, EvalConfig(seq_len=seq_len, batch_tokens=50), ALONE)
    assert result.tokens == num_windows * seq_len == len(nats)
    assert result.val_loss == pytest.approx(math.fsum(nats) / len(nats), rel=1e-9)


@pytest.mark.parametrize(("seq_len", "batch_tokens"), [(1, 1), (1, 7), (5, 5), (5, 24), (7, 10_000), (64, 64)])
def test_windows_and_batches_do_not_change_the_sums(
    processor: sentencepiece.SentencePieceProcessor, table: ByteTable, tokens: Tensor, seq_len: int, batch_tokens: int
) -> None:
    """A model without long context scores the same tokens alike however they are cut, the last batch included."""
    model = Bigram(processor.vocab_size())
    covered = (len(tokens) - 1) // seq_len * seq_len
    whole = score(model, tokens[: covered + 1], table, EvalConfig(seq_len=covered), ALONE)
    cut = score(model, tokens, table, EvalConfig(seq_len=seq_len, batch_tokens=batch_tokens), ALONE)
    assert (cut.tokens, cut.bytes) == (covered, whole.bytes)
    assert cut.val_bpb == pytest.approx(whole.val_bpb, rel=1e-12)


def _score_on_rank(rank: int, folder: str, tokens: Tensor, table: ByteTable, vocab_size: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    env = DistEnv(rank=rank, local_rank=rank, world_size=2)
    result = score(Bigram(vocab_size), tokens, table, EvalConfig(seq_len=5, batch_tokens=20), env)
    dist.destroy_process_group()
    Path(folder, f"{rank}.txt").write_text(repr(result))


def test_two_ranks_give_the_sums_of_one(
    processor: sentencepiece.SentencePieceProcessor, table: ByteTable, tokens: Tensor, tmp_path: Path
) -> None:
    """Windows shared between two gloo processes add up to the same score, on both."""
    alone = score(Bigram(processor.vocab_size()), tokens, table, EvalConfig(seq_len=5, batch_tokens=20), ALONE)
    mp.spawn(_score_on_rank, (str(tmp_path), tokens.to(torch.int64), table, processor.vocab_size()), nprocs=2)
    for rank in range(2):
        result = eval((tmp_path / f"{rank}.txt").read_text())
        assert isinstance(result, Score)
        assert (result.tokens, result.bytes) == (alone.tokens, alone.bytes)
        assert result.val_bpb == pytest.approx(alone.val_bpb, rel=1e-12)


def test_scoring_twice_gives_the_same_bits(
    processor: sentencepiece.SentencePieceProcessor, table: ByteTable, tokens: Tensor
) -> None:
    """Same model, same machine: same float, in either precision."""
    config = ModelConfig(vocab_size=processor.vocab_size(), num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1)
    model = build_model(config, seed=0).eval()
    eval_config = EvalConfig(seq_len=16, batch_tokens=64)
    for precision in ("float32", "bfloat16"):
        runs = [score(model, tokens, table, eval_config, ALONE, precision=precision).val_bpb for _ in range(2)]
        assert runs[0] == runs[1]


class Constant:
    """Every target costs the same."""

    def __init__(self, nats: float) -> None:
        self.nats = nats

    def token_losses(self, ids_BT: Tensor, targets_BT: Tensor, /) -> Tensor:
        return torch.full(targets_BT.shape, self.nats)


@pytest.mark.parametrize("nats", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(table: ByteTable, tokens: Tensor, nats: float) -> None:
    """A score never carries NaN."""
    with refused(f"the validation loss is not finite: {nats}", hint="lower the learning rate"):
        score(Constant(nats), tokens, table, EvalConfig(seq_len=8), ALONE)


def test_too_few_tokens_and_textless_tokens_are_refused(table: ByteTable, tokens: Tensor) -> None:
    """Less than one window, and targets that stand for no text, have no bits per byte."""
    with pytest.raises(ValueError, match="scoring needs at least seq_len \\+ 1 = 9 tokens, got 8"):
        score(Constant(1.0), tokens[:8], table, EvalConfig(seq_len=8), ALONE)
    with pytest.raises(ValueError, match="no bytes of text"):
        score(Constant(1.0), torch.ones(9, dtype=torch.int64), table, EvalConfig(seq_len=8), ALONE)


@pytest.fixture
def shards(tokens: Tensor, tmp_path: Path) -> Path:
    """A dataset directory with one validation shard."""
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    path = tmp_path / "fineweb_val_000000.bin"
    path.write_bytes(header.tobytes() + tokens.numpy().astype("<u2").tobytes())
    return tmp_path


def trained(vocab_size: int, quant: QuantConfig) -> tuple[GPT, bytes]:
    """A model and its artifact."""
    config = ModelConfig(
        vocab_size=vocab_size, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, embed_init_std=0.3
    )
    model = build_model(config, seed=3).eval()
    tensors = quantize_state(model.state_dict(), config, quant)
    return model, pack_model(config, EvalConfig(seq_len=16, batch_tokens=64), tensors)


def test_the_artifact_is_scored_from_its_bytes(shards: Path, tokenizer: str, table: ByteTable, tokens: Tensor) -> None:
    """evaluate_artifact is unpack, load, score; at eight bits it is near the unquantized model, at two it is not."""
    results = {}
    for bits in (8, 2):
        quant = QuantConfig(embed_bits=bits, embed_clip_sigmas=4.0, attn_bits=(bits,), mlp_bits=(bits,))
        model, artifact = trained(len(table.base_bytes), quant)
        results[bits], _ = evaluate_artifact(artifact, val=str(shards), tokenizer=tokenizer, env=ALONE)
        unpacked = unpack_model(artifact)
        by_hand = score(load_model(unpacked), tokens, table, unpacked.eval_config, ALONE)
        assert results[bits].val_bpb == by_hand.val_bpb
        assert results[bits].seconds > 0
    exact = score(model, tokens, table, EvalConfig(seq_len=16, batch_tokens=64), ALONE)
    assert abs(results[8].val_bpb - exact.val_bpb) < 0.01 < abs(results[2].val_bpb - exact.val_bpb)


def test_a_vocabulary_that_does_not_match_is_refused(shards: Path, tokenizer: str, table: ByteTable) -> None:
    """A tokenizer larger than the model's vocabulary, and shards with ids beyond it, say so."""
    _, artifact = trained(40, QuantConfig())
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ pieces, vocab_size is 40"):
        evaluate_artifact(artifact, val=str(shards), tokenizer=tokenizer, env=ALONE)
    _, artifact = trained(len(table.base_bytes), QuantConfig())
    path = next(shards.glob("*.bin"))
    whole = path.read_bytes()
    path.write_bytes(whole[:1024] + b"\xff\xff" + whole[1026:])
    with pytest.raises(ValueError, match="token id 65535 does not fit vocab_size"):
        evaluate_artifact(artifact, val=str(shards), tokenizer=tokenizer, env=ALONE)
