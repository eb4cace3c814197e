"""Rows of the paper's tables and the pairs of arms that are their counterparts.

Source: TIPSv2, arXiv:2604.12012. The numbers are zero-shot mIoU on ADE150 where nothing else is
said, as several independent readers report them.
"""

from dataclasses import dataclass, field

from training.reproduce import plan
from training.reproduce.plan import student_of
from training.reproduce.results import Value, last_loss, score

FEATURES = "patches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two arms, of which the paper reports the first as better.

    Attributes:
        better: The first arm.
        worse: The second arm.
        is_equality: Whether the paper reports them as about equal.
        value: What is compared; higher is better.
        unit: Its name in the table.
    """

    better: str
    worse: str
    is_equality: bool = False
    value: Value = field(default=score(FEATURES))
    unit: str = "mIoU"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperRow:
    """A claim of the paper.

    Attributes:
        table: Where the paper has it.
        claim: What it says.
        numbers: The paper's.
        pair: The counterpart; None if the miniature has none.
        reason: Why there is none.
    """

    table: str
    claim: str
    numbers: str
    pair: Pair | None = None
    reason: str = ""


def _visible(result: dict[str, object]) -> float:
    return -last_loss("patch_visible")(result)


_IBOT_STUDENT = student_of(plan.IBOT, plan.RECIPE)
_PP_STUDENT = student_of(plan.IBOT_PP, plan.RECIPE)

ROWS = (
    PaperRow(
        table="3, 4",
        claim="pretraining by iBOT++ over iBOT",
        numbers="17.6 over 3.5",
        pair=Pair(better=plan.IBOT_PP, worse=plan.IBOT),
    ),
    PaperRow(
        table="Figure 2",
        claim="the loss of visible patches ends lower under iBOT++ than under iBOT (where the "
        "paper's does not fall; see Losses)",
        numbers="a plot",
        pair=Pair(
            better=plan.IBOT_PP, worse=plan.IBOT, value=_visible, unit="nats lower at the end"
        ),
    ),
    PaperRow(
        table="9 to 11",
        claim="contrast with iBOT over contrast alone",
        numbers="PC60: 8.0 over 4.3",
        pair=Pair(better=plan.IBOT, worse=plan.CONTRAST),
    ),
    PaperRow(
        table="9 to 11",
        claim="contrast with iBOT++ over contrast alone",
        numbers="PC60: 22.9 over 4.3",
        pair=Pair(better=plan.IBOT_PP, worse=plan.CONTRAST),
    ),
    PaperRow(
        table="12",
        claim="pretraining by iBOT++ with mask 0.75 over mask 0",
        numbers="13.6 over 1.0",
        pair=Pair(better=plan.IBOT_PP, worse=plan.UNMASKED),
    ),
    PaperRow(
        table="1",
        claim="the student over its iBOT teacher",
        numbers="20.8 over 2.6",
        pair=Pair(better=_IBOT_STUDENT, worse=plan.IBOT),
    ),
    PaperRow(
        table="2, rows 1 and 2",
        claim="distillation over pretraining, both with mask 0.75, masked patches only",
        numbers="5.9 over 0.3",
        pair=Pair(better=student_of(plan.IBOT, plan.MASKED_ONLY), worse=plan.IBOT),
    ),
    PaperRow(
        table="2, rows 2 and 3",
        claim="distillation of masked patches with mask 0.5 over 0.75",
        numbers="7.0 over 5.9",
        pair=Pair(
            better=student_of(plan.IBOT, plan.HALF_MASKED_ONLY),
            worse=student_of(plan.IBOT, plan.MASKED_ONLY),
        ),
    ),
    PaperRow(
        table="2, rows 2 and 4",
        claim="distillation of all patches with mask 0 over masked patches with mask 0.75",
        numbers="20.0 over 5.9",
        pair=Pair(better=_IBOT_STUDENT, worse=student_of(plan.IBOT, plan.MASKED_ONLY)),
    ),
    PaperRow(
        table="2, its reading",
        claim="supervised visible patches decide: all over masked only, both with mask 0.75",
        numbers="no row",
        pair=Pair(
            better=student_of(plan.IBOT, plan.MASKED_ALL),
            worse=student_of(plan.IBOT, plan.MASKED_ONLY),
        ),
    ),
    PaperRow(
        table="2, rows 4 and 7",
        claim="a student with random weights over one that starts from pretrained weights",
        numbers="20.0 over 2.4",
        pair=Pair(better=_IBOT_STUDENT, worse=student_of(plan.IBOT, plan.WARM)),
    ),
    PaperRow(
        table="2, rows 5 and 6",
        claim="the student's text tower, pretrained, frozen or new, matters little",
        numbers="19 to 20",
        reason="texts have fixed vectors",
    ),
    PaperRow(
        table="README",
        claim="TIPSv2: the student over its iBOT++ teacher",
        numbers="24.7 over 17.8",
        pair=Pair(better=_PP_STUDENT, worse=plan.IBOT_PP),
    ),
    PaperRow(
        table="2, with the iBOT++ teacher",
        claim="distillation of all patches with mask 0 over masked patches with mask 0.75",
        numbers="no row",
        pair=Pair(better=_PP_STUDENT, worse=student_of(plan.IBOT_PP, plan.MASKED_ONLY)),
    ),
    PaperRow(
        table="2, with the iBOT++ teacher",
        claim="all over masked only, both with mask 0.75",
        numbers="no row",
        pair=Pair(
            better=student_of(plan.IBOT_PP, plan.MASKED_ALL),
            worse=student_of(plan.IBOT_PP, plan.MASKED_ONLY),
        ),
    ),
    PaperRow(
        table="2, with the iBOT++ teacher",
        claim="a student with random weights over one that starts from iBOT's weights",
        numbers="no row",
        pair=Pair(better=_PP_STUDENT, worse=student_of(plan.IBOT_PP, plan.WARM)),
    ),
    PaperRow(
        table="4",
        claim="a head-only average as good as a full one",
        numbers="19.1 and 18.1",
        pair=Pair(better=plan.HEAD_EMA, worse=plan.IBOT_PP, is_equality=True),
    ),
    PaperRow(
        table="text",
        claim="an averaged head over none",
        numbers="no numbers",
        pair=Pair(better=plan.HEAD_EMA, worse=plan.NO_EMA),
    ),
    PaperRow(
        table="4",
        claim="captions of several granularities over one",
        numbers="18.1 over 17.6",
        pair=Pair(better=plan.IBOT_PP, worse=plan.ONE_CAPTION),
    ),
    PaperRow(
        table="4, 9 to 11, 13, 15",
        claim="linear segmentation, depth, normals, KNN, retrieval on photographs",
        numbers="various",
        reason="the scenes have no such tasks",
    ),
)
