"""Knobs of training: rates, schedules, optimizers, averages, the order of the data."""

from __future__ import annotations

from space.knobs.groups import Fields, KnobGroup, Scale, Values, number, whole
from space.params import ChoiceParam, FloatParam, IntParam, Param, Scalar, When


def sequence_knobs(scale: Scale) -> KnobGroup:
    """Length of a sequence, in training and in scoring."""
    params: tuple[Param, ...] = ()
    baseline: dict[str, Scalar] = {}
    if len(scale.seq_lens) > 1:
        params = (
            ChoiceParam(
                name="seq_len",
                options=scale.seq_lens,
                tag="throughput_dependent",
                doc="tokens per sequence, in training and in scoring; 1024 to 2048 gave -.021 bpb, to 4096 -.026",
            ),
        )
        baseline = {"seq_len": scale.seq_lens[0]}

    def fields(values: Values) -> Fields:
        seq_len = int(values.get("seq_len", scale.seq_lens[0]))
        return {"train.seq_len": seq_len, "eval.seq_len": seq_len}

    return KnobGroup(params=params, baseline=baseline, fields=fields)


def rate_knobs(scale: Scale) -> KnobGroup:
    """Learning rates and momentum."""
    params = (
        FloatParam(
            name="matrix_lr",
            low=scale.matrix_lr[0],
            high=scale.matrix_lr[1],
            log=True,
            tag="step_dependent",
            doc="Muon; .02 to .026 with a long warmdown, .04 in the baseline; coupled with warmdown and decay",
        ),
        FloatParam(
            name="embed_lr",
            low=scale.embed_lr[0],
            high=scale.embed_lr[1],
            log=True,
            tag="step_dependent",
            doc="AdamW, tied embedding; .03 to .1 in records",
        ),
        FloatParam(
            name="scalar_lr",
            low=scale.scalar_lr[0],
            high=scale.scalar_lr[1],
            log=True,
            tag="step_dependent",
            doc="AdamW, gains and scales; .02 to .04 in records",
        ),
        FloatParam(
            name="momentum_gap",
            low=scale.momentum_gap[0],
            high=scale.momentum_gap[1],
            log=True,
            tag="step_dependent",
            doc="1 - Muon momentum; the optimum moved .05, .01, .03 as steps and rates changed",
        ),
    )

    def fields(values: Values) -> Fields:
        return {
            "train.matrix_lr": number(values, "matrix_lr"),
            "train.embed_lr": number(values, "embed_lr"),
            "train.scalar_lr": number(values, "scalar_lr"),
            "train.muon_momentum": 1.0 - number(values, "momentum_gap"),
        }

    baseline: dict[str, Scalar] = {
        "matrix_lr": 0.04,
        "embed_lr": 0.05,
        "scalar_lr": 0.04,
        "momentum_gap": 0.05,
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def decay_knobs() -> KnobGroup:
    """Whether weights decay, and how fast."""
    params = (
        ChoiceParam(
            name="decay",
            options=(False, True),
            tag="step_dependent",
            doc="whether weights decay; off in the baseline, on in every later record",
        ),
        FloatParam(
            name="weight_decay",
            low=0.01,
            high=0.2,
            log=True,
            tag="step_dependent",
            when=When(parent="decay", values=(True,)),
            doc="matrices and embedding alike (records keep them within 10 %); .04 to .095",
        ),
    )

    def fields(values: Values) -> Fields:
        weight_decay = float(values.get("weight_decay", 0.0))
        return {
            "train.matrix_weight_decay": weight_decay,
            "train.embed_weight_decay": weight_decay,
        }

    return KnobGroup(params=params, baseline={"decay": False}, fields=fields)


def schedule_knobs(scale: Scale) -> KnobGroup:
    """When rates fall, how large a gradient may be, and whether an average of the weights ships."""
    params = (
        FloatParam(
            name="warmdown_fraction",
            low=0.05,
            high=0.95,
            tag="step_dependent",
            doc="share of the run in which the rate falls; .09 grew to .85 over the records",
        ),
        ChoiceParam(
            name="grad_clip",
            options=(0.0, 0.3, 1.0),
            tag="step_dependent",
            doc="global norm; off in the baseline, .3 in every record since 2026-03-20",
        ),
        ChoiceParam(
            name="ema",
            options=(False, True),
            tag="step_dependent",
            doc="whether the moving average of the weights ships",
        ),
        FloatParam(
            name="ema_gap",
            low=scale.ema_gap[0],
            high=scale.ema_gap[1],
            log=True,
            tag="step_dependent",
            when=When(parent="ema", values=(True,)),
            doc="1 - decay, so 1 / ema_gap steps are averaged; .003 at 5,000 to 7,000 steps",
        ),
    )

    def fields(values: Values) -> Fields:
        return {
            "train.grad_clip": number(values, "grad_clip"),
            "train.warmdown_fraction": number(values, "warmdown_fraction"),
            "train.ema_decay": 1.0 - number(values, "ema_gap") if values["ema"] else 0.0,
        }

    baseline: dict[str, Scalar] = {
        "warmdown_fraction": 0.09,
        "grad_clip": 0.0,
        "ema": False,
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def muon_knobs() -> KnobGroup:
    """Which Muon: row norms, polynomial, iterations, how momentum begins."""
    params = (
        ChoiceParam(
            name="muon_normalize_rows",
            options=(False, True),
            tag="scale_free",
            doc="divide each row of the update by its norm before orthogonalising (MuonEq-R); claimed -.001 bpb",
        ),
        ChoiceParam(
            name="muon_polynomial",
            options=("quintic", "polar_express"),
            tag="scale_free",
            doc="one triple for all iterations, or one each; polar_express since 2026-04-23",
        ),
        IntParam(
            name="muon_iterations",
            low=3,
            high=6,
            tag="throughput_dependent",
            doc="5 in records; 3 was as good for ternary weights, 2 unstable",
        ),
        FloatParam(
            name="momentum_warmup",
            low=0.02,
            high=0.5,
            log=True,
            tag="step_dependent",
            doc="fraction of the run in which momentum rises; 500 to 1,500 of 5,000 to 14,000 steps",
        ),
    )

    def fields(values: Values) -> Fields:
        return {
            "train.muon_normalize_rows": values["muon_normalize_rows"],
            "train.muon_polynomial": values["muon_polynomial"],
            "train.muon_iterations": whole(values, "muon_iterations"),
            "train.muon_momentum_warmup": number(values, "momentum_warmup"),
        }

    baseline: dict[str, Scalar] = {
        "muon_normalize_rows": False,
        "muon_polynomial": "quintic",
        "muon_iterations": 5,
        "momentum_warmup": 0.04,
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def ending_knobs() -> KnobGroup:
    """AdamW's memory, and how a run ends: the last rate, an average of the last weights, the last decay."""
    params = (
        FloatParam(
            name="beta2_gap",
            low=0.005,
            high=0.1,
            log=True,
            tag="step_dependent",
            doc="1 - Adam's beta2; .05 everywhere, .01 in the best record",
        ),
        FloatParam(
            name="min_lr",
            low=0.0,
            high=0.2,
            tag="step_dependent",
            when=When(parent="ema", values=(True,)),
            doc="last rate over the peak; .1 in the best record, pays only with an average of the weights",
        ),
        ChoiceParam(
            name="swa",
            options=(False, True),
            tag="step_dependent",
            when=When(parent="ema", values=(False,)),
            doc="average the weights of the last part at equal weight; superseded by EMA in records",
        ),
        FloatParam(
            name="decay_final",
            low=0.25,
            high=1.0,
            tag="step_dependent",
            when=When(parent="decay", values=(True,)),
            doc="decay's multiplier at the end, falling from 70 % of the run; .5 in one record",
        ),
    )

    def fields(values: Values) -> Fields:
        return {
            "train.adam_beta2": 1.0 - number(values, "beta2_gap"),
            "train.min_lr_fraction": float(values.get("min_lr", 0.0)),
            "train.swa_start": 0.3 if values.get("swa") else 0.0,
            "train.weight_decay_taper_start": 0.7,
            "train.weight_decay_final": float(values.get("decay_final", 1.0)),
        }

    baseline: dict[str, Scalar] = {
        "beta2_gap": 0.05,
        "swa": False,
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def data_knobs(scale: Scale) -> KnobGroup:
    """Order and cut of the training windows."""
    params = (
        ChoiceParam(
            name="loader",
            options=("sequential", "shuffled", "strided", "packed"),
            tag="scale_free",
            doc="sequential in March, strided and shuffled in April, packed by document in the best records",
        ),
        ChoiceParam(
            name="document_attention",
            options=(False, True),
            tag="scale_free",
            doc="attention stays within a document; the best records train and score so",
        ),
        ChoiceParam(
            name="short_start",
            options=(False, True),
            tag="step_dependent",
            doc="half the sequence length in the first half of the run; helped only the binary record",
        ),
    )

    def fields(values: Values) -> Fields:
        return {
            "train.loader": values["loader"],
            "model.document_attention": values["document_attention"],
            "train.seq_len_schedule": ((0.0, 0.5), (0.5, 1.0)) if values["short_start"] else (),
        }

    loader = scale.fixed.train.loader
    baseline: Values = {"loader": loader, "document_attention": False, "short_start": False}
    return KnobGroup(params=params, baseline=baseline, fields=fields)
