"""mistral.rs: its Python package, in process. It takes texts, not token ids: the runner's texts have known counts."""

import concurrent.futures
import os
import tempfile
import time

from . import venvs, worker
from .engine import WorkerEngine

REQUIREMENT = "mistralrs==0.9.5"
# Only chat requests can be sent before others are answered: this template gives the text on as it is.
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class MistralRs(WorkerEngine):
    name = "mistralrs"
    module = "mistralrs"

    def install(self):
        venvs.install(self.folder, REQUIREMENT)

    def version(self):
        return venvs.version(self.python(), "mistralrs")

    def environment(self, load):
        return {"RAYON_NUM_THREADS": str(load.threads), "HF_HUB_OFFLINE": "1"}


class Worker:
    def start(self, model, threads, num_requests, context):
        import mistralrs

        template = tempfile.NamedTemporaryFile("w", suffix=".jinja")
        template.write(TEMPLATE)
        template.flush()
        self.template = template  # the file goes when it is closed
        self.runner = mistralrs.Runner(
            which=mistralrs.Which.GGUF(os.path.dirname(model), os.path.basename(model)),
            max_seqs=num_requests,
            prefix_cache_n=0,
            token_source="none",
            jinja_explicit=template.name,
        )

    def answer(self, prompt, num_tokens):
        import mistralrs

        request = mistralrs.CompletionRequest(
            prompt=prompt["text"], model="default", max_tokens=num_tokens, temperature=0.0, top_k=1, ignore_eos=True
        )
        begun = time.perf_counter()
        said = self.runner.send_completion_request(request)
        seconds = time.perf_counter() - begun
        usage, text = said.usage, said.choices[0].text
        answer = {"prompt_tokens": usage.prompt_tokens, "generated": usage.completion_tokens, "text": text}
        return {"seconds": seconds, "answers": [answer]}

    def answer_together(self, prompts, num_tokens):
        import mistralrs

        requests = [
            mistralrs.ChatCompletionRequest(
                messages=[{"role": "user", "content": prompt["text"]}], model="default", max_tokens=num_tokens,
                temperature=0.0, top_k=1, ignore_eos=True, stream=True,
            )
            for prompt in prompts
        ]
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            begun = time.perf_counter()
            streams = [self.runner.send_chat_completion_request(request) for request in requests]
            answers = list(pool.map(read_stream, streams))
            return {"seconds": time.perf_counter() - begun, "answers": answers}


def read_stream(stream):
    """A stream to its end; its last piece has the counts."""
    usage = None
    for piece in stream:
        usage = piece.usage or usage
    if usage is None:
        raise RuntimeError("the stream ended without its counts")
    return {"prompt_tokens": usage.prompt_tokens, "generated": usage.completion_tokens}


if __name__ == "__main__":
    worker.serve(Worker())
