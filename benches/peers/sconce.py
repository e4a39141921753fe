"""Sconce: `sconce serve`, asked over HTTP."""

import shlex
import subprocess

from .engine import REPOSITORY, Answer, EngineError, Prompt, ServerEngine


class Sconce(ServerEngine):
    name = "sconce"

    def __init__(self, binary=None, args=""):
        super().__init__()
        self.binary = (binary or REPOSITORY / "target" / "release" / "sconce").resolve()
        self.args = shlex.split(args)

    def install(self):
        if not self.binary.is_file():
            raise EngineError(f"{self.binary} is not there: run `cargo build --release`, or name one with --binary")

    def version(self):
        said = subprocess.run([str(self.binary), "--version"], capture_output=True, text=True).stdout.strip()
        return " ".join([said, *self.args])

    def start(self, load):
        self.serve(
            lambda port: [
                self.binary, "serve", "--model", load.model, "--port", port, "--threads", load.threads,
                "--max-model-len", load.context, "--no-prefix-cache", *self.args,
            ]
        )

    def request(self, prompt, num_tokens):
        fields = {"prompt": prompt.ids, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
        said = self.post("/generate", fields)
        output, usage = said["outputs"][0], said["usage"]
        return Answer(usage["prompt_tokens"], usage["completion_tokens"], output["text"])

    def tokenize(self, text, add_special_tokens):
        return self.post("/tokenize", {"prompt": text, "add_special_tokens": add_special_tokens})["tokens"]

    def prompt(self, text):
        """A text as every engine gets it: with the special tokens that the model's tokenizer adds."""
        return Prompt(self.tokenize(text, True), text)

    def cut_prompt(self, text, num_tokens):
        """The beginning of a text that has so many tokens, or None where no beginning reads back as the same tokens."""
        num_special = len(self.tokenize(text, True)) - len(self.tokenize(text, False))
        tokens = self.tokenize(text, False)[: num_tokens - num_special]
        prompt = self.prompt(self.post("/detokenize", {"tokens": tokens})["prompt"])
        return prompt if len(prompt.ids) == num_tokens else None
