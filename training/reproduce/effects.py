"""Which of the paper's effects are looked for, and which pairs of runs show each.

Source: TIPSv2, arXiv:2604.12012; the tables of its ablations.
"""

from dataclasses import dataclass

from training.reproduce.plan import AVERAGED, LONG_STUDENT, RECIPE, STUDENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two variants, the first of which is claimed to be better.

    Attributes:
        better: Its variant, or "painted CLS1" for that row of `of`'s own.
        worse: As above.
        question: What their difference answers.
        is_equality: The paper claims that they are alike, not that one is better.
    """

    better: str
    worse: str
    question: str
    is_equality: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One claim of the paper and what is compared for it.

    Attributes:
        letter: Its short name.
        title: In a few words.
        claim: What the paper measured, in a sentence.
        comparisons: Pairs of variants.
        with_retrieval: Whether retrieval is compared as well as segmentation.
    """

    letter: str
    title: str
    claim: str
    comparisons: tuple[Comparison, ...]
    with_retrieval: bool = False

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant that is compared, in order of appearance."""
        pairs = [(pair.better, pair.worse) for pair in self.comparisons]
        return tuple(dict.fromkeys(name for pair in pairs for name in pair))


EFFECTS = (
    Effect(
        letter="a",
        title="iBOT++ against iBOT in pretraining",
        claim="ViT-g, zero-shot mIoU on ADE150: 3.5 with iBOT, 17.6 with iBOT++.",
        comparisons=(
            Comparison(better=RECIPE, worse="ibot", question="iBOT++ over iBOT"),
            Comparison(better=RECIPE, worse="contrastive", question="iBOT++ over no patch loss"),
            Comparison(better="ibot", worse="contrastive", question="iBOT over no patch loss"),
            Comparison(
                better=STUDENT,
                worse="student-of-ibot",
                question="a student of the iBOT++ teacher over one of the iBOT teacher",
            ),
        ),
    ),
    Effect(
        letter="b",
        title="Distillation: what is masked and what is supervised",
        claim="ViT-L, ADE150: 20.0 with mask 0, 5.9 with mask 0.75; visible patches decide.",
        comparisons=(
            Comparison(
                better=STUDENT, worse="student-mask-75", question="mask 0 over 0.75, all tokens"
            ),
            Comparison(
                better="student-mask-75",
                worse="student-masked-only",
                question="all tokens over masked ones only, both at 0.75",
            ),
            Comparison(
                better=STUDENT,
                worse="student-masked-only",
                question="the paper's distillation over pretraining's patch loss",
            ),
        ),
    ),
    Effect(
        letter="c",
        title="Student against teacher",
        claim="TIPS: the ViT-g teacher has 2.6 on ADE150 and its ViT-L student 20.8.",
        comparisons=(
            Comparison(better=STUDENT, worse=RECIPE, question="student over its teacher"),
            Comparison(
                better=LONG_STUDENT,
                worse=RECIPE,
                question="a student that saw as many scenes as its teacher over it",
            ),
            Comparison(
                better=STUDENT,
                worse="student-alone",
                question="student over the same training without a teacher",
            ),
            Comparison(
                better="student-of-ibot", worse="ibot", question="iBOT's student over its teacher"
            ),
        ),
    ),
    Effect(
        letter="d",
        title="Head-only average against a full one, and none",
        claim="ViT-g, ADE150: 19.1 with the head's average alone, 18.1 with a full one.",
        comparisons=(
            Comparison(
                better=RECIPE, worse="full-ema", question="head-only against full", is_equality=True
            ),
            Comparison(
                better=RECIPE,
                worse=AVERAGED,
                question="head-only against full, keeping the averaged encoder",
                is_equality=True,
            ),
            Comparison(better=RECIPE, worse="no-ema", question="head-only over no average"),
        ),
    ),
    Effect(
        letter="e",
        title="Captions of several granularities against one source",
        claim="ViT-g: Flickr text to image from 81.7 to 85.4, ADE150 from 17.6 to 18.1.",
        comparisons=(
            Comparison(
                better=RECIPE, worse="one-caption", question="alt text, keywords and scene over alt"
            ),
        ),
        with_retrieval=True,
    ),
)
