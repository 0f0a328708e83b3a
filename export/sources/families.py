"""Data on the published models: their prompts, and the names of their files.

Templates are those of the published code: DLYuanGod/TinyGPT-V's conversations, and LLaVA-1.5's form with two
separators, which LLaVA-Phi, Mipha, TinyLLaVA and Bunny share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinygptv.runtime.bundle.manifest import PromptTemplate
from tinygptv.runtime.language.prompt import IMAGE_SLOT

from ..parts import Tower, clip, siglip
from .lora import Prefixes

TOWERS: dict[str, Tower] = {"siglip": siglip, "clip": clip}
"""Vision towers by the part of a name that the published code tests for, in this order."""


@dataclass(frozen=True)
class Family:
    """Published models with the same prompts."""

    name: str
    templates: tuple[PromptTemplate, ...]
    caption_question: str
    stop_strings: tuple[str, ...] = ()
    """Texts that end an answer besides the tokenizer's end of text."""
    tasks: tuple[str, ...] = ()
    """Task tags that the model was trained with."""
    boxes: bool = False
    """Whether answers contain boxes."""
    prefixes: Prefixes = ()
    """Prefixes of keys in a folder with the complete model; canonical ones begin with ``tower.`` and ``projector.``."""


_IMG = f"<Img>{IMAGE_SLOT}</Img> "
_HUMAN = PromptTemplate("human_assistant", system="", user="###Human: ", assistant="###Assistant: ", image=_IMG)
_LLAVA = PromptTemplate(
    "llava",
    system="A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. ",
    user="USER: ",
    assistant=" ASSISTANT:",
    image=f"{IMAGE_SLOT}\n",
    before_answer=" ",
    after_answer="<|endoftext|>",
)
_CAPTION = "Provide a one-sentence caption for the provided image."
"""The caption question of LLaVA-1.5 (LLaVA's text caption data)."""
_LLAVA_PREFIXES = (("model.vision_tower.", "tower."), ("model.mm_projector.", "projector."))
_NESTED_PREFIXES = (("model.vision_tower.vision_tower.", "tower."), ("model.mm_projector.", "projector."))
_FACTORY_PREFIXES = (
    ("vision_tower._vision_tower.", "tower."),
    ("connector._connector.", "projector."),
    ("language_model.", ""),
)

TINYGPT_V = Family(
    "tinygpt-v",
    (
        # Of stages 1 to 3 and all released evaluations, of stages 1 to 3's demo, and of stage 4's.
        _HUMAN,
        replace(
            _HUMAN,
            name="human_assistant_with_system",
            system="Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I "
            "provide it to you. Please answer my questions.",
        ),
        PromptTemplate("inst", system="", user="<s>[INST] ", assistant=" [/INST]", image=_IMG),
    ),
    caption_question="[caption]",
    stop_strings=("###",),  # training ended every answer so, in every template
    tasks=("[vqa]", "[caption]", "[grounding]", "[refer]", "[detection]", "[identify]"),
    boxes=True,
)
LLAVA_PHI = Family("llava-phi", (_LLAVA,), _CAPTION, prefixes=_LLAVA_PREFIXES)
MIPHA = replace(LLAVA_PHI, name="mipha")
TINYLLAVA = Family("tinyllava", (replace(_LLAVA, strip_question=True),), _CAPTION, prefixes=_FACTORY_PREFIXES)
TINYLLAVA_LEGACY = replace(TINYLLAVA, prefixes=_NESTED_PREFIXES)
BUNNY = replace(LLAVA_PHI, name="bunny", prefixes=_NESTED_PREFIXES)

BY_MODEL_TYPE = {"llava_phi": LLAVA_PHI, "mipha_phi": MIPHA, "tinyllava": TINYLLAVA, "bunny-phi": BUNNY}
"""Families by ``model_type`` in config.json."""
ARCHITECTURES = {
    "LlavaPhiForCausalLM": LLAVA_PHI,
    "MiphaPhiForCausalLM": MIPHA,
    "TinyLlavaForConditionalGeneration": TINYLLAVA,
    "TinyLlavaPhiForCausalLM": TINYLLAVA_LEGACY,
    "BunnyPhiForCausalLM": BUNNY,
}
"""Families by ``architectures`` in config.json."""
STAGE_TEMPLATES = {1: "human_assistant", 2: "human_assistant", 3: "human_assistant", 4: "inst"}
"""Templates of TinyGPT-V's released demo, by stage."""
IMAGE_SIZES = {1: 224, 2: 224, 3: 224, 4: 448}
"""Side in pixels of the images that each stage of TinyGPT-V was trained on."""
STAGES = tuple(IMAGE_SIZES)
TEMPLATE_NAMES = tuple(
    dict.fromkeys(t.name for family in (TINYGPT_V, *ARCHITECTURES.values()) for t in family.templates)
)
