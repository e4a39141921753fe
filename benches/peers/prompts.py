"""Prompts of a wanted number of tokens, each another one, so that no engine can answer from its cache."""

import random

from .engine import EngineError

SEED = 20240229
NUM_TRIES = 50
WORDS = (
    "river stone light house table water garden winter summer music paper window mountain people country market story "
    "letter morning evening machine number system school doctor father mother sister brother friend little great small "
    "large green white black yellow quiet early later under over between before after always never often again both "
    "every other another first second third north south east west land road bridge field forest ocean island bird "
    "horse fish tree flower fruit bread salt sugar iron gold silver glass wood cotton silk colour shape circle square"
).split()


class Prompts:
    """Makes prompts with Sconce's tokenizer."""

    def __init__(self, sconce):
        self.sconce = sconce
        self.random = random.Random(SEED)

    def make(self, num_tokens):
        for _ in range(NUM_TRIES):
            words = " ".join(self.random.choice(WORDS) for _ in range(num_tokens))
            prompt = self.sconce.cut_prompt(words, num_tokens)
            if prompt is not None:
                return prompt
        raise EngineError(f"no text of {num_tokens} tokens was found: the model's tokenizer does not read back what it writes")
