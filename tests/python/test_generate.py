"""POST /generate: sensible text, and the stream that existing clients read."""

from conftest import records

SKY = [{"role": "user", "content": "Why is the sky blue?"}]


def test_a_question_gets_a_sensible_answer(server):
    answer = server.generate(messages=SKY, max_tokens=120, temperature=0)
    output = answer["outputs"][0]
    text = output["text"].lower()
    assert answer["text"] == [output["text"]], "with messages, `text` holds the outputs alone"
    assert output["finish_reason"] in ("stop", "length")
    assert len(text.split()) > 20, text
    assert any(word in text for word in ("light", "blue", "scatter", "atmosphere")), text
    assert answer["usage"]["completion_tokens"] == len(output["token_ids"])
    assert "<|im_" not in text, text


def test_a_prompt_is_continued(server):
    prompt = "The capital of France is"
    answer = server.generate(prompt=prompt, max_tokens=8, temperature=0)
    assert answer["text"][0] == prompt + answer["outputs"][0]["text"]
    assert "Paris" in answer["outputs"][0]["text"]


def test_token_ids_do_what_their_text_does(server):
    prompt = "Once upon a time, in a small village by the sea,"
    ids = server.post("/tokenize", {"prompt": prompt}).json()["tokens"]
    by_text = server.generate(prompt=prompt, max_tokens=12, temperature=0)
    by_ids = server.generate(prompt=ids, max_tokens=12, temperature=0)
    assert by_ids["outputs"][0]["token_ids"] == by_text["outputs"][0]["token_ids"]


def test_a_stream_ends_with_the_whole_answer(server):
    for request in (
        {"messages": SKY, "max_tokens": 60, "temperature": 0},
        {"prompt": "The sea is", "max_tokens": 30, "temperature": 0},
        {"prompt": "Überall «日本» 🌍", "max_tokens": 30, "temperature": 1.5, "seed": 3, "n": 2},
    ):
        whole = server.generate(**request)
        texts, last = [], None
        for last in records(server.stream(**request)):
            assert "error" not in last, last
            texts.append(last["text"][0])
        assert texts[-1] == whole["text"][0]
        assert last["text"] == whole["text"]
        for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert last["usage"][count] == whole["usage"][count]
        reasons = [output["finish_reason"] for output in last["outputs"]]
        assert reasons == [output["finish_reason"] for output in whole["outputs"]]
        if request.get("n", 1) == 1:
            for earlier, later in zip(texts, texts[1:]):
                assert later.startswith(earlier), "text is cumulative"


def test_a_stop_string_ends_the_text_before_it(server):
    request = {"prompt": "One, two, three, four, five,", "max_tokens": 40, "temperature": 0}
    full = server.generate(**request)["outputs"][0]["text"]
    stop = full[len(full) // 2:][:3]
    output = server.generate(**request, stop=[stop])["outputs"][0]
    assert output["text"] == full[: full.index(stop)]
    assert (output["finish_reason"], output["stop_reason"]) == ("stop", stop)
    included = server.generate(**request, stop=[stop], include_stop_str_in_output=True)["outputs"][0]
    assert included["text"] == full[: full.index(stop)] + stop
    for record in records(server.stream(**request, stop=[stop])):
        assert stop not in record["outputs"][0]["text"]


def test_logprobs_belong_to_the_tokens(server):
    output = server.generate(prompt="The sky is", max_tokens=5, temperature=0, logprobs=3)["outputs"][0]
    assert len(output["logprobs"]) == len(output["token_ids"]) == 5
    assert output["cumulative_logprob"] < 0
