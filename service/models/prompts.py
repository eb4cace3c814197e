"""One request's prompts: which of them the cache has, and what the others cost."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, Self

from service.call import Call
from service.lanes.work import Completed
from service.models.served_model import ServedModel
from service.models.texts import Embeddings
from service.validation import PromptGroup

# What a prompt costs at the gate, in patches: about the tokens of a class name in a template.
PROMPT_COST: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Those of all texts or classes.

    Attributes:
        model: Whose they are.
        groups: One for each text or class.
        cached: Raw embeddings [D] of those that the cache has.
        missing: Each prompt that must be computed, once, with the field that it comes from.
    """

    model: ServedModel
    groups: Sequence[PromptGroup]
    cached: Embeddings
    missing: Mapping[str, str]

    @classmethod
    def of(cls, groups: Sequence[PromptGroup], model: ServedModel) -> Self:
        """Ask the model's cache."""
        cached = model.find_cached(groups)
        missing: dict[str, str] = {}
        for group in groups:
            for prompt in group.prompts:
                if prompt not in cached:
                    missing.setdefault(prompt, group.param)
        return cls(model=model, groups=groups, cached=cached, missing=missing)

    @property
    def cost(self) -> int:
        """In patches."""
        return PROMPT_COST * len(self.missing)

    async def encode(self, call: Call, pool: Executor) -> tuple[Embeddings, list[Completed]]:
        """Raw embeddings [D] of those that are missing; as `TextEncoder.encode`."""
        return await self.model.encode_prompts(self.missing, call, pool)


def count_waits(done: Sequence[Completed], call: Call) -> None:
    """Items run side by side: the slowest is what the caller waited for."""
    call.wait("queue", max((d.queue_s for d in done), default=0.0))
    call.wait("run", max((d.run_s for d in done), default=0.0))
    for batch in {d.batch for d in done}:
        call.trace.ran_in(batch)
