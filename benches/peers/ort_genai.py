"""onnxruntime-genai, in process. It reads no quantized GGUF file: its builder makes int4 models from the expanded weights.

The file's weights are expanded to f32 and written as a Hugging Face folder (expand.py), which the builder quantizes anew:
blocks of 32, symmetric, inputs in 8 bits (accuracy level 4). Both need PyTorch, which makes this environment large.

Two models of the same weights are made. `alone` computes a prompt's last logits only, as Sconce does. In a batch of
prompts of several lengths it takes padding for the last token, so requests at once go to `together`, which computes all.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import time

from . import venvs, worker
from .engine import REPOSITORY, START_LIMIT_S, EngineError, WorkerEngine

REQUIREMENTS = (
    "onnxruntime-genai==0.18.*", "onnx==1.23.*", "onnx-ir==1.1.*", "torch==2.15.*", "transformers==5.24.*", "accelerate==1.15.*",
    "gguf==0.19.*",
)
OPTIONS = ("accuracy_level=4", "block_size=32")
MODELS = {"alone": (*OPTIONS, "prune_lm_head=true"), "together": OPTIONS}


class OrtGenai(WorkerEngine):
    name = "ort-genai"
    module = "ort_genai"

    def install(self):
        venvs.install(self.folder, *REQUIREMENTS)

    def version(self):
        return venvs.version(self.python(), "onnxruntime-genai") + " (quantized anew: int4, blocks of 32, 8-bit inputs)"

    def start(self, load):
        super().start(dataclasses.replace(load, model=self.build(load.model)))

    def build(self, model):
        """The folder with this file's ONNX models; they are made if they are not there."""
        stat = model.stat()
        folder = self.folder / "models" / f"{model.stem}-{stat.st_size}-{stat.st_mtime_ns}"
        if folder.is_dir():
            return folder
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        expanded = part / "expanded"
        expanded.mkdir(parents=True)
        self.run_module("peers.expand", model, expanded)
        for name, options in MODELS.items():
            self.run_module(
                "onnxruntime_genai.models.builder", "-i", expanded, "-o", part / name, "-p", "int4", "-e", "cpu",
                "-c", part / "cache", "--extra_options", *options,
            )
        shutil.rmtree(expanded)
        shutil.rmtree(part / "cache", ignore_errors=True)
        part.rename(folder)
        return folder

    def run_module(self, module, *args):
        """Runs a module of this environment to its end; what it writes goes to the engine's log."""
        # Offline: all that is needed lies in folders, and a server would be asked all the same.
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "benches"), "HF_HUB_OFFLINE": "1"}
        self.spawn([self.python(), "-P", "-m", module, *args], stdin=subprocess.DEVNULL, env=env)
        try:
            code = self.process.wait(START_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            self.stop()
            raise EngineError(f"{module} did not end in {START_LIMIT_S} s") from error
        if code != 0:
            raise EngineError(f"{module} ended with code {code}: {self.last_words()}")
        self.process = None


class Worker:
    def start(self, model, threads, num_requests, context):
        import onnxruntime_genai

        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        self.models = {}
        for name in MODELS:
            config = onnxruntime_genai.Config(str(pathlib.Path(model) / name))
            config.overlay(json.dumps(options))
            self.models[name] = onnxruntime_genai.Model(config)
        self.tokenizer = onnxruntime_genai.Tokenizer(self.models["alone"])

    def answer(self, prompt, num_tokens):
        return self.generate("alone", [prompt], num_tokens)

    def answer_together(self, prompts, num_tokens):
        return self.generate("together", prompts, num_tokens)

    def generate(self, name, prompts, num_tokens):
        """One batch. Shorter prompts are padded at their end, where the engine's mask leaves the padding out."""
        import numpy
        import onnxruntime_genai

        longest = max(len(prompt["ids"]) for prompt in prompts)
        ids = numpy.full((len(prompts), longest), self.tokenizer.pad_token_id, dtype=numpy.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt["ids"])] = prompt["ids"]
        begun = time.perf_counter()
        params = onnxruntime_genai.GeneratorParams(self.models[name])
        # No sequence may end before it is as long as it may become: end tokens are not chosen.
        length = longest + num_tokens
        params.set_search_options(do_sample=False, batch_size=len(prompts), min_length=length, max_length=length)
        generator = onnxruntime_genai.Generator(self.models[name], params)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        seconds = time.perf_counter() - begun
        answers = []
        for index, prompt in enumerate(prompts):
            generated = generator.get_sequence(index)[longest:]
            text = self.tokenizer.decode(generated)
            answers.append({"prompt_tokens": len(prompt["ids"]), "generated": len(generated), "text": text})
        return {"seconds": seconds, "answers": answers}


if __name__ == "__main__":
    worker.serve(Worker())
