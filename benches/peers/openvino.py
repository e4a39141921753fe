"""OpenVINO GenAI: its ContinuousBatchingPipeline, in process, which reads GGUF files itself."""

import time

from . import venvs, worker
from .engine import WorkerEngine

REQUIREMENT = "openvino-genai==2026.4.*"
CACHE_GIB = 2


class OpenVino(WorkerEngine):
    name = "openvino"
    module = "openvino"

    def install(self):
        venvs.install(self.folder, REQUIREMENT)

    def version(self):
        return venvs.version(self.python(), "openvino-genai")


class Worker:
    def start(self, model, threads, num_requests, context):
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.enable_prefix_caching = False
        scheduler.max_num_seqs = max(num_requests, 1)
        scheduler.max_num_batched_tokens = num_requests * context  # a prompt is never cut
        properties = {"INFERENCE_NUM_THREADS": threads}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self.tokenizer = self.pipeline.get_tokenizer()

    def answer(self, prompt, num_tokens):
        return self.answer_together([prompt], num_tokens)

    def answer_together(self, prompts, num_tokens):
        import numpy
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = num_tokens
        config.ignore_eos = True
        config.do_sample = False
        inputs = [openvino.Tensor(numpy.array([prompt["ids"]], dtype=numpy.int64)) for prompt in prompts]
        begun = time.perf_counter()
        results = self.pipeline.generate(inputs, [config] * len(inputs))
        seconds = time.perf_counter() - begun
        answers = []
        for prompt, result in zip(prompts, results, strict=True):
            ids = list(result.m_generation_ids[0])
            text = self.tokenizer.decode(ids)
            answers.append({"prompt_tokens": len(prompt["ids"]), "generated": len(ids), "text": text})
        return {"seconds": seconds, "answers": answers}


if __name__ == "__main__":
    worker.serve(Worker())
