"""One network with a head per task, behind scikit-learn's fit and predict."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from riskmtl.adapting import AdaptingMixin
from riskmtl.adding import AddingMixin
from riskmtl.borrowing import borrowing
from riskmtl.device import resolve_device
from riskmtl.errors import unknown_name
from riskmtl.given import mapping_of, require_count
from riskmtl.history import history_frame, kept_epochs
from riskmtl.labelling import LabellingMixin
from riskmtl.model import Head, RiskModel
from riskmtl.networks import NetworkConfig
from riskmtl.parameters import check_parameters, per_task
from riskmtl.prepared import Prepared, blended
from riskmtl.schema import DataSchema
from riskmtl.scorers import NetworkScorer, Scorer
from riskmtl.sizing import Sizes

if TYPE_CHECKING:
    from riskmtl.baseline import LightGBMBaseline
    from riskmtl.training.config import TrainingConfig
    from riskmtl.training.rows import TaskPlan

_Number = TypeVar("_Number", int, float)


class MultiTaskClassifier(AddingMixin, AdaptingMixin, LabellingMixin):
    """
    One network with a head for each outcome.

    Parameters
    ----------
    network : str
        How the heads share: ``"ple"`` and ``"mmoe"`` (experts and gates), ``"shared_bottom"``,
        ``"soft_sharing"`` (a body per task, tied), ``"encoder_decoder"``, ``"cross_attention"``,
        ``"aitm"`` (tasks in the order of the labels, each hands on to the next), and
        ``"single_task"``, one network per task, as a control.
    schema : DataSchema, optional
        What the table holds; then `fit` takes the raw table, and labels from it.
    categorical_features : "from_dtype", or sequence of str, int or bool
        Which columns are categories, where no schema says so.
    min_count : int or "auto"
        Categories rarer than this share the code for values never seen.
    regression_tasks : sequence of str
        Label columns that are numbers to be predicted, as auxiliary heads.
    numeric_embedding : {"piecewise_linear", "periodic", "standardize"}
    members : int or "auto"
        Weight-sharing members whose probabilities are averaged; training and scoring take about
        so many times as long. ``"auto"``: 8, from 50,000 rows 1, and from 150,000 rows 2.
    embedding_dim : int
        Numbers per embedded feature.
    bins : int
        Bins of the piecewise-linear embedding.
    steps : int or "auto"
        Its steps: a numeric feature with no more distinct values has a vector for each of them.
        ``"auto"``: one in 500 rows, at most 256; 1: none.
    credible_rows : float
        Training rows at which a category's vector counts half, so that one with few rows is not
        learned by heart; 0: each that has a row counts whole. See
        :func:`riskmtl.networks.embedding.credibility`.
    experts : int or "auto"
        Experts of MMoE. ``"auto"``: 4, and 8 from 150,000 rows.
    task_experts, shared_experts : int or "auto"
        Own experts per task and shared ones of PLE. ``"auto"``: 1, and 2 from 150,000 rows.
    levels : int
        Levels of PLE.
    expert_units, shared_units, tower_units : sequence of int
        Layers of an expert, of a body (the shared bottom, the encoder, or each task's own), of a
        tower.
    gating : {"softmax", "top_k", "dselect_k"}
        How the gates of MMoE and PLE weigh experts: all of them, or few; see
        :mod:`riskmtl.networks.gating`.
    active_experts : int
        Experts that a sparse gate lets through; all are computed nevertheless.
    expert_dropout : float
        Share of the experts that each gate does without in a training step.
    tie : {"l2", "trace_norm", "cross_stitch"}
        What ties the bodies of soft sharing: a penalty on the distance of their weights, on the
        trace norm of these, or learned mixing between layers.
    code_width : int
        Width of the code between encoder and decoders.
    decoder_units : sequence of int
        Layers of a decoder.
    groups : sequence of sequence of str, optional
        Tasks that share a network, such as ``[["default"], ["fraud", "takeover"]]``, each task in
        one group; default: all share one. Networks of different groups are trained apart, but a
        head with `few_events` may lean on heads of any group. See :func:`riskmtl.group_tasks`.
    linear_path : bool
        Whether a linear path leads from the embedded features to each head, beside the trunk; for
        outcomes that are nearly additive in the columns.
    dropout : float
        Share of the numbers dropped in experts and towers.
    feature_dropout : float
        Share of the features of a row dropped whole, so that no head leans on a single one.
    learning_rate : float or "auto"
        Peak of the one-cycle schedule. ``"auto"``: 0.008 below 50,000 rows, 0.002 below 150,000,
        else 0.004, at a batch of 1024 and in proportion to the square root of the batch; see
        :mod:`riskmtl.sizing`.
    weight_decay : float
        Decoupled decay of all matrices but those of the embedding.
    embedding_decay : float or "auto"
        The same of the vectors that categories, bins and steps are embedded as, which learn rare
        values by heart where nothing holds them. ``"auto"``: 0.01, and 2 from 50,000 rows.
    batch_size : int or "auto"
        ``"auto"``: 128 below 10,000 rows, 256 below 50,000, 512 below 150,000, else 1024.
    epochs, patience : int
        Most epochs, and epochs without improvement after which training stops.
    clip : float
        Largest norm of the gradient.
    monitor : {"log_loss_skill", "average_precision", "roc_auc"}
        Validation metric, averaged over the heads, that chooses the best epoch. Rank metrics of
        few events jump about; see :func:`riskmtl.metrics.log_loss_skill`.
    task_weights : mapping of str to float, optional
        Factor on a task's loss. Where not given: its observed rows over those of the task that has
        most, so that each observed label counts alike, and a head with few of them learns from the
        shared part instead of disturbing it.
    balancing : str
        How the tasks' losses become one. By weights of the losses: ``"sum"``, ``"static"`` (those
        of `task_weights`, 1 where none is given), ``"uncertainty"``, ``"dwa"``, ``"random"``,
        ``"geometric_mean"``, ``"famo"``, ``"gradnorm"``; by weights of the gradients where these
        conflict: ``"pcgrad"``, ``"gradvac"``, ``"cagrad"``, ``"mgda"``, ``"nash_mtl"``,
        ``"fairgrad"``, ``"aligned_mtl"``, ``"upgrad"``, ``"dual_proj"``, ``"imtl_g"``, for which
        install ``riskmtl[balancing]``. See :mod:`riskmtl.training.balancing`.
    balancing_options : mapping, optional
        Keyword arguments of the balancing, such as ``{"temperature": 1.0}`` for ``"dwa"`` and
        ``{"c": 0.4, "at": "representation", "every": 10}`` for ``"cagrad"``.
    penalties : mapping of str to float, optional
        Factor on each penalty; see :mod:`riskmtl.training.penalties`.
    schedule : {"joint", "round_robin", "by_size", "by_uncertainty"}
        ``"joint"``: every step trains all tasks; otherwise each trains one, on rows that observe
        it: in turn, as often as it has rows, or as often as it is still uncertain. Not with a
        balancing that weighs the tasks of one step by each other.
    warm_up : mapping of str to float, optional
        Epochs over which a task's loss comes in, step by step from 0 to its weight.
    freeze_shared_after : int, optional
        Epochs after which only what belongs to a single task learns.
    balanced_events : mapping of str to float, optional
        How many times as often batches draw a row with an event of a task; losses and
        probabilities are corrected for it, and the other heads see as many of their own as before.
        Needs ``schedule="joint"``.
    label_smoothing : float
        Share of each label that is replaced by the task's base rate; not by 1/2, which would
        raise the answers of a rare outcome.
    mixup : float
        Both parameters of the Beta distribution that mixes pairs of embedded rows; 0: none are.
        Not together with `compile`.
    selected_by : mapping of str to str, optional
        Task to the task whose event decides whether it is observed at all, such as
        ``{"default": "approved"}``: default is known of the approved only.
    selection : {"entire_space", "inverse_propensity"}
        What is done about it; see :mod:`riskmtl.training.selection`. Metrics, best epoch and
        calibration of the head rest on rows that observe it all the same.
    propensity_floor : float
        Least probability of selection that a row is weighted by.
    few_events : int
        Heads with fewer events in training lean on the other heads' log-odds, as far as the
        validation rows bear it out; see :func:`riskmtl.borrowing.borrowing`. 0: none does.
    event_weight : "balanced" or mapping of str to float, optional
        Factor on the events of each task; the log-odds are corrected for it, so that
        probabilities stay right.
    calibrate : bool
        Whether to calibrate each head on the validation rows.
    validation_share : float
        Share of the rows held out where `fit` gets no validation rows.
    challenger : {"lightgbm", "blend"}, optional
        Train LightGBM on the same rows too, and keep it beside the network as ``challenger_``.
        With ``"blend"`` it has a share in the answers: each head's log-odds are a mixture, with
        the weight that has the least log-loss on the validation rows.
    challenger_options : mapping, optional
        Parameters of :class:`LightGBMBaseline` for the challenger.
    device : {"auto", "cpu", "cuda"}
    precision : {"auto", "32", "bf16"}
        Of the products in training; weights and scores are float32 always. ``"auto"``: bfloat16
        where the processor multiplies it natively, which is about twice as fast.
    compile : bool
        Compile the network for training.
    checkpoint_dir : str, optional
        Folder for the last checkpoint; an interrupted `fit` goes on from there.
    trainer_options : mapping, optional
        Passed on to :class:`pytorch_lightning.Trainer`. ``{"strategy": "ddp", "devices": 4}``: four
        processes train one network, each on its share of every batch, and each ends with it.
    callbacks : sequence of pytorch_lightning.Callback
    logger : pytorch_lightning logger, optional
    verbose : bool
        Whether to show a progress bar.
    random_state : int, RandomState or None

    Attributes
    ----------
    tasks_ : list of str
        Binary tasks; the columns of ``predict_proba``.
    classes_ : list of ndarray
        Negative and positive label per binary task; one array after a fit on 1-d labels.
    history_ : polars.DataFrame
        A row per epoch and task, null where there is nothing to be said: ``train_loss``, the
        validation metrics ``val_…``, ``task_weight`` (mean factor on its loss),
        ``gradient_norm`` (of its loss, over the shared parameters), ``gradient_cosine_<other>``
        (with another task's gradient), ``gate_weights`` (mean weight of each expert of the last
        level, null where its gate cannot select it), ``gate_entropy`` (0: follows one expert,
        1: mixes all alike), ``dead_experts`` (that no gate gives more than 0.01), and ``kept``:
        whether the task's network has the weights of this epoch. See
        :mod:`riskmtl.training.diagnosis` and :func:`riskmtl.diagnose`.
    best_epoch_ : int
        The epoch whose weights were kept, from 0; of several networks the latest; -1 after
        :meth:`fine_tune` where none was better than the weights that it started from.
    best_epochs_ : dict
        Task to the epoch whose weights were kept of its network.
    challenger_ : LightGBMBaseline
        Only with `challenger`.
    blend_weights_ : dict
        Task to the network's share in the answer; only with ``challenger="blend"``.
    saving_ : Saving
        What is saved; only after :meth:`only`.
    model_ : RiskModel

    Examples
    --------
    >>> import polars as pl
    >>> from riskmtl import MultiTaskClassifier
    >>> X = pl.DataFrame({"amount": [1.0, 9.0] * 100, "country": ["FR", "XX"] * 100})
    >>> y = pl.DataFrame({"fraud": [0, 1] * 100, "takeover": [0, 1, None, 0] * 50})
    >>> model = MultiTaskClassifier(network="mmoe", epochs=2, random_state=0).fit(X, y)
    >>> model.predict_proba(X).shape, model.tasks_
    ((200, 2), ['fraud', 'takeover'])
    """

    challenger_: LightGBMBaseline
    blend_weights_: dict[str, float]

    _unsaved: ClassVar[frozenset[str]] = frozenset(
        {"schema", "trainer_options", "callbacks", "logger", "checkpoint_dir"}
    )

    def __init__(
        self,
        network: str = "ple",
        *,
        schema: DataSchema | None = None,
        categorical_features: Any = "from_dtype",
        min_count: int | str = "auto",
        regression_tasks: Sequence[str] = (),
        members: int | str = "auto",
        numeric_embedding: str = "piecewise_linear",
        embedding_dim: int = 16,
        bins: int = 48,
        steps: int | str = "auto",
        credible_rows: float = 300.0,
        experts: int | str = "auto",
        task_experts: int | str = "auto",
        shared_experts: int | str = "auto",
        levels: int = 1,
        expert_units: Sequence[int] = (128, 64),
        shared_units: Sequence[int] = (256, 128),
        tower_units: Sequence[int] = (32,),
        gating: str = "softmax",
        active_experts: int = 2,
        expert_dropout: float = 0.0,
        tie: str = "l2",
        code_width: int = 32,
        decoder_units: Sequence[int] = (64,),
        groups: Sequence[Sequence[str]] | None = None,
        linear_path: bool = False,
        dropout: float = 0.3,
        feature_dropout: float = 0.0,
        learning_rate: float | str = "auto",
        weight_decay: float = 1e-2,
        embedding_decay: float | str = "auto",
        batch_size: int | str = "auto",
        epochs: int = 10,
        patience: int = 4,
        clip: float = 1.0,
        monitor: str = "log_loss_skill",
        task_weights: Mapping[str, float] | None = None,
        balancing: str = "sum",
        balancing_options: Mapping[str, Any] | None = None,
        penalties: Mapping[str, float] | None = None,
        schedule: str = "joint",
        warm_up: Mapping[str, float] | None = None,
        freeze_shared_after: int | None = None,
        balanced_events: Mapping[str, float] | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        selected_by: Mapping[str, str] | None = None,
        selection: str = "entire_space",
        propensity_floor: float = 0.1,
        few_events: int = 100,
        event_weight: str | Mapping[str, float] | None = None,
        calibrate: bool = True,
        validation_share: float = 0.15,
        challenger: str | None = None,
        challenger_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        precision: str = "auto",
        compile: bool = False,
        checkpoint_dir: str | None = None,
        trainer_options: Mapping[str, Any] | None = None,
        callbacks: Sequence[Any] = (),
        logger: Any = None,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        self.network = network
        self.schema = schema
        self.categorical_features = categorical_features
        self.min_count = min_count
        self.regression_tasks = regression_tasks
        self.members = members
        self.numeric_embedding = numeric_embedding
        self.embedding_dim = embedding_dim
        self.bins = bins
        self.steps = steps
        self.credible_rows = credible_rows
        self.experts = experts
        self.task_experts = task_experts
        self.shared_experts = shared_experts
        self.levels = levels
        self.expert_units = expert_units
        self.shared_units = shared_units
        self.tower_units = tower_units
        self.gating = gating
        self.active_experts = active_experts
        self.expert_dropout = expert_dropout
        self.tie = tie
        self.code_width = code_width
        self.decoder_units = decoder_units
        self.groups = groups
        self.linear_path = linear_path
        self.dropout = dropout
        self.feature_dropout = feature_dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.embedding_decay = embedding_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.clip = clip
        self.monitor = monitor
        self.task_weights = task_weights
        self.balancing = balancing
        self.balancing_options = balancing_options
        self.penalties = penalties
        self.schedule = schedule
        self.warm_up = warm_up
        self.freeze_shared_after = freeze_shared_after
        self.balanced_events = balanced_events
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.selected_by = selected_by
        self.selection = selection
        self.propensity_floor = propensity_floor
        self.few_events = few_events
        self.event_weight = event_weight
        self.calibrate = calibrate
        self.validation_share = validation_share
        self.challenger = challenger
        self.challenger_options = challenger_options
        self.device = device
        self.precision = precision
        self.compile = compile
        self.checkpoint_dir = checkpoint_dir
        self.trainer_options = trainer_options
        self.callbacks = callbacks
        self.logger = logger
        self.verbose = verbose
        self.random_state = random_state

    # ---- checking parameters -------------------------------------------------------------------

    def _check_parameters(self) -> None:
        check_parameters(self)

    def with_members(self, members: int) -> Self:
        """
        A copy that answers with fewer members: quicker, and a little less accurate.

        Parameters
        ----------
        members : int
            At most as many as were trained. Calibration and blend stay as they are.

        Returns
        -------
        MultiTaskClassifier

        Raises
        ------
        ValueError
            If there are not so many members.
        """
        self._require_fitted()
        scorer = self.model_.scorer
        assert isinstance(scorer, NetworkScorer)
        require_count("members", members)
        if members > scorer.shape.members:
            raise ValueError(f"members must be at most {scorer.shape.members}, got {members}")
        fewer = copy.copy(self)
        fewer.members = members
        made_by = {
            **self.model_.made_by,
            "parameters": {**self.model_.made_by["parameters"], "members": members},
        }
        # It is another model than the one that has this name on disk.
        lineage = {k: v for k, v in self.model_.lineage.items() if k != "model_id"}
        model = replace(self.model_, scorer=scorer.cut(members), made_by=made_by, lineage=lineage)
        fewer._take_up(model)
        return fewer

    # ---- learning ------------------------------------------------------------------------------

    def _fit_model(self, data: Prepared, started: float) -> RiskModel:
        if self.challenger is not None:
            self._beside().require_tasks([head.task for head in data.heads])
        model = super()._fit_model(data, started)
        model.history = self.history_
        for attribute in ("challenger_", "blend_weights_"):
            if hasattr(self, attribute):
                delattr(self, attribute)
        if self.challenger is not None:
            self.challenger_ = self._beside()._fit_like(self, data)
            model.challenger = self.challenger_.model_
        if self.challenger == "blend":
            model.heads = blended(model, data)
        return model

    def _take_up(self, model: RiskModel) -> None:
        super()._take_up(model)
        if model.history is not None:
            self.history_ = model.history
            self.best_epochs_ = kept_epochs(model.history)
            self.best_epoch_ = max(self.best_epochs_.values())
        if model.challenger is not None and not hasattr(self, "challenger_"):
            from riskmtl.baseline import LightGBMBaseline

            self.challenger_ = LightGBMBaseline._of(model.challenger)
        if model.made_by["parameters"]["challenger"] == "blend":
            self.blend_weights_ = {h.task: h.blend for h in model.heads if h.kind == "binary"}

    def _beside(self) -> LightGBMBaseline:
        from riskmtl.baseline import LightGBMBaseline

        options = mapping_of("challenger_options", self.challenger_options)
        own = self.get_params(deep=False)
        names = LightGBMBaseline._get_param_names()
        # It learns from the rows that the network has: how they are read is said once.
        valid = [name for name in names if name not in own or name in ("calibrate", "verbose")]
        for name in options:
            if name not in valid:
                raise ValueError(f"challenger_options: {unknown_name('option', name, valid)}")
        shared = {name: value for name, value in own.items() if name in names}
        return LightGBMBaseline(**{**shared, **options})

    def _learn(self, data: Prepared) -> tuple[Scorer, list[Head]]:
        from riskmtl.training.fit import train

        names = [task.name for task in data.tasks]
        shape = replace(self._shape(len(data.rows.x)), groups=self._groups(names))
        plan = self._plan(data, names)
        trained = train(
            shape,
            data.encoder.cardinalities_,
            plan,
            self._training(len(data.rows.x), data.seed),
            data.rows,
            data.validation,
        )
        self.history_ = history_frame(trained.history)
        scorer = NetworkScorer(
            trained.network,
            shape,
            data.encoder.cardinalities_,
            plan.regression,
            device=str(resolve_device(self.device)),
        )
        heads = [
            replace(head, shift=math.log(weight))
            for head, weight in zip(data.heads, plan.event_factors, strict=True)
        ]
        if data.is_held_out and self.network != "single_task":
            raw = scorer.raw(data.validation.x)
            heads = borrowing(heads, raw, data.rows, data.validation, few=self.few_events)
        return scorer, heads

    def _groups(self, names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Positions of the tasks of each group, in the order of the tasks; none: all share."""
        groups = [list(group) for group in self.groups or ()]
        for task in (task for group in groups for task in group):
            if task not in names:
                raise ValueError(f"groups: {unknown_name('task', task, names)}")
        alone = [name for name in names if not any(name in group for group in groups)]
        if groups and alone:
            raise ValueError(
                f"groups: task {alone[0]!r} is in none; add it to one, or give it its own"
            )
        found = sorted(tuple(sorted(names.index(task) for task in group)) for group in groups)
        return tuple(found) if len(found) > 1 else ()

    def _shape(self, rows: int) -> NetworkConfig:
        sizes = Sizes.make(rows)
        return NetworkConfig(
            network=self.network,
            members=_chosen(self.members, sizes.members),
            numeric_embedding=self.numeric_embedding,
            embedding_dim=self.embedding_dim,
            bins=self.bins,
            steps=_chosen(self.steps, sizes.steps),
            credible_rows=float(self.credible_rows),
            experts=_chosen(self.experts, 4 * sizes.experts),
            task_experts=_chosen(self.task_experts, sizes.experts),
            shared_experts=_chosen(self.shared_experts, sizes.experts),
            levels=self.levels,
            expert_units=tuple(self.expert_units),
            shared_units=tuple(self.shared_units),
            tower_units=tuple(self.tower_units),
            gating=self.gating,
            active_experts=self.active_experts,
            expert_dropout=self.expert_dropout,
            tie=self.tie,
            code_width=self.code_width,
            decoder_units=tuple(self.decoder_units),
            linear_path=bool(self.linear_path),
            dropout=self.dropout,
            feature_dropout=self.feature_dropout,
        )

    def _training(self, rows: int, seed: int) -> TrainingConfig:
        from riskmtl.training.config import TrainingConfig

        sizes = Sizes.make(rows)
        batch = _chosen(self.batch_size, sizes.batch_size)
        return TrainingConfig(
            epochs=self.epochs,
            patience=self.patience,
            batch_size=batch,
            learning_rate=_chosen(self.learning_rate, sizes.learning_rate(batch)),
            weight_decay=self.weight_decay,
            embedding_decay=_chosen(self.embedding_decay, sizes.embedding_decay),
            clip=self.clip,
            balancing=self.balancing,
            balancing_options=mapping_of("balancing_options", self.balancing_options),
            penalties=mapping_of("penalties", self.penalties),
            schedule=self.schedule,
            freeze_shared_after=self.freeze_shared_after,
            label_smoothing=self.label_smoothing,
            mixup=self.mixup,
            selection=self.selection,
            propensity_floor=self.propensity_floor,
            monitor=self.monitor,
            device=self.device,
            precision=self.precision,
            compile=self.compile,
            seed=seed,
            checkpoint_dir=self.checkpoint_dir,
            trainer_options=mapping_of("trainer_options", self.trainer_options),
            callbacks=tuple(self.callbacks),
            logger=self.logger,
            progress=self.verbose,
        )

    def _plan(self, data: Prepared, names: list[str]) -> TaskPlan:
        from riskmtl.training.rows import TaskPlan
        from riskmtl.training.selection import as_learned, require_selection, selectors

        regression = tuple(task.kind == "regression" for task in data.tasks)
        selected_by = mapping_of("selected_by", self.selected_by)
        by = selectors(selected_by, names, regression, self.selection)
        require_selection(data.rows.y, by, names)
        labels = as_learned(data.rows, by, self.selection).y
        observed = (~np.isnan(labels)).mean(axis=0)
        shares = [float(share) for share in observed / observed.max()]
        if self.balancing == "static":
            shares = [1.0] * len(names)
        weights = per_task("task_weights", self.task_weights, names, shares)
        nothing, once = [0.0] * len(names), [1.0] * len(names)
        if self.event_weight == "balanced":
            factors = [_balance(labels[:, i]) for i in range(len(names))]
        else:
            assert not isinstance(self.event_weight, str)
            factors = per_task("event_weight", self.event_weight, names, once)
        rates = per_task("balanced_events", self.balanced_events, names, once)
        for name, rate, is_regression in zip(names, rates, regression, strict=True):
            if is_regression and rate != 1:
                raise ValueError(f"balanced_events: {name!r} is a regression and has no events")
        return TaskPlan(
            names=tuple(names),
            regression=regression,
            weights=tuple(weights),
            positive_weights=tuple(
                1.0 if is_regression else factor
                for is_regression, factor in zip(regression, factors, strict=True)
            ),
            warm_up=tuple(per_task("warm_up", self.warm_up, names, nothing)),
            event_rates=tuple(rates),
            selected_by=by,
        )


def _chosen(given: float | str, automatic: _Number) -> _Number:
    return automatic if given == "auto" else type(automatic)(given)


def _balance(labels: NDArray[np.float32]) -> float:
    """Non-events per event."""
    seen = labels[~np.isnan(labels)]
    events = float((seen > 0).sum())
    return (len(seen) - events) / events if 0 < events < len(seen) else 1.0
