//! Tests of [`ChatTemplate`] and of what users' text becomes.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::{Value, json};

use super::{ChatInput, ChatTemplate};
use crate::text::Tokenizer;
use crate::text::testing::{TOKENIZERS, ids, legacy_mistral, shared, shared_json, shared_tokenizer};

fn input(messages: &Value) -> ChatInput {
    ChatInput { messages: messages.as_array().unwrap().clone(), ..ChatInput::default() }
}

fn check_golden(name: &str, template: &ChatTemplate, tokenizer: &Tokenizer, case: &Value) {
    let mut input = input(&case["messages"]);
    input.template_kwargs.insert("add_generation_prompt".into(), case["add_generation_prompt"].clone());
    match template.render(&input, tokenizer) {
        Ok(chat) => {
            assert_eq!(Some(chat.text()), case["text"].as_str(), "{name}");
            assert_eq!(tokenizer.encode_chat(&chat).unwrap(), ids(&case["ids"]), "{name}");
        }
        Err(error) => {
            let words = case["error"].as_str().unwrap_or_else(|| panic!("{name}: {error}"));
            let words = words.strip_prefix("TemplateError: ").unwrap_or(words);
            assert!(error.to_string().contains(words), "{name}: {error}");
            assert_eq!(error.param(), Some("messages"), "{name}");
        }
    }
}

#[test]
fn fixtures_render_as_golden() {
    for name in TOKENIZERS.iter().filter(|name| name.starts_with("fixtures/")) {
        let Some(dir) = shared(name) else { return };
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let template = ChatTemplate::from_dir(&dir, &tokenizer).unwrap();
        if *name == "fixtures/phi" {
            assert!(template.is_none(), "phi has no template");
            continue;
        }
        let golden = shared_json(&format!("{name}/golden/chat.json")).unwrap();
        for case in golden.as_array().unwrap() {
            check_golden(name, template.as_ref().unwrap(), &tokenizer, case);
        }
    }
}

#[test]
fn real_templates_render_as_golden() {
    let Some(golden) = shared_json("tokenizers/chat_template_goldens.json") else { return };
    let mut num_cases = 0;
    for (name, cases) in golden.as_object().unwrap() {
        let path = shared("tokenizers").unwrap().join(name);
        let tokenizer = match name.contains("old-2023-12") {
            true => legacy_mistral().unwrap(),
            false => Tokenizer::from_dir(path.parent().unwrap()).unwrap(),
        };
        let source = std::fs::read_to_string(&path).unwrap();
        let template = ChatTemplate::compile(&path, source, &tokenizer).unwrap();
        for (case, golden) in cases.as_object().unwrap() {
            check_golden(&format!("{name}, {case}"), &template, &tokenizer, golden);
            num_cases += 1;
        }
    }
    assert_eq!(num_cases, 54);
}

/// A tokenizer with the control tokens `<s>`, `<eos>`, `<|user|>` (which swallows white space after it) and `[X]`, and
/// every byte as a token.
fn small_tokenizer() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    let mut vocab: serde_json::Map<String, Value> = (0..256).map(|b| (format!("<0x{b:02X}>"), json!(b))).collect();
    vocab.insert("<unk>".into(), json!(256));
    let token = |id: u32, content: &str, rstrip: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": rstrip,
            "normalized": false, "special": true})
    };
    let file = json!({
        "version": "1.0",
        "added_tokens": [token(257, "<s>", false), token(258, "<eos>", false), token(259, "<|user|>", true),
            token(260, "[X]", false)],
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": vocab, "merges": []},
    });
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    let config = r#"{"bos_token": "<s>", "eos_token": "<eos>"}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    Tokenizer::from_dir(dir.path()).unwrap()
}

fn compile(source: &str, tokenizer: &Tokenizer) -> ChatTemplate {
    ChatTemplate::compile(Path::new("template"), source.into(), tokenizer).unwrap()
}

const SIMPLE: &str =
    "{{ bos_token }}{% for m in messages %}<|user|>  {{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}";

/// Renders one user message by `source`: the text, and the control tokens among the ids.
fn rendered(source: &str, content: &Value) -> (String, Vec<u32>) {
    let tokenizer = small_tokenizer();
    let template = compile(source, &tokenizer);
    let chat = template.render(&input(&json!([{"role": "user", "content": content}])), &tokenizer).unwrap();
    let ids = tokenizer.encode_chat(&chat).unwrap();
    let spelled: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
    // The two spaces after <|user|> are part of it.
    assert_eq!(String::from_utf8(spelled).unwrap(), chat.text().replace("<|user|>  ", "<|user|>"));
    (chat.text().to_owned(), ids.into_iter().filter(|id| *id > 256).collect())
}

#[test]
fn users_text_never_becomes_a_control_token() {
    for content in [
        "plain",
        "<eos>",
        "a<eos>b<s>",
        "<|user|> x",
        "<<eos>",
        "<eos",
        "[X]",
        "<\u{fdd0}s><s>\u{fdd1}\u{fdef}",
        "a < b",
        "<|user|",
        "<s",
    ] {
        let (text, control) = rendered(SIMPLE, &json!(content));
        assert_eq!(text, format!("<s><|user|>  user: {content}<eos>"));
        assert_eq!(control, [257, 259, 258], "{content:?}");
    }
}

#[test]
fn control_tokens_are_not_put_together_from_pieces() {
    // By the template's own text, by two strings that meet, by what it cuts away, by characters one by one.
    let joined = "<s>{{ messages[0].content }}os>";
    assert_eq!(rendered(joined, &json!("<e")).1, [257]);
    let meeting = "<s>{{ messages[0].content }}{{ messages[0].content }}";
    assert_eq!(rendered(meeting, &json!("s><eos><")).1, [257]);
    let cut = "<s>{{ messages[0].content | replace('y', '') | trim }}";
    assert_eq!(rendered(cut, &json!(" <eyos> y")).1, [257]);
    let one_by_one = "<s>{% for c in messages[0].content | list %}{{ c }}{% endfor %}[X]";
    assert_eq!(rendered(one_by_one, &json!("<eos>[X]<s>")).1, [257, 260]);
    let parts = "{% for p in messages[0].content %}{{ p.text }}{% endfor %}<eos>";
    let content = json!([{"type": "text", "text": "<e"}, {"type": "text", "text": "os>"}]);
    assert_eq!(rendered(parts, &content), ("<eos><eos>".into(), vec![258]));
}

#[test]
fn templates_see_other_marks_in_users_text() {
    let source =
        "{% if '</think>' in messages[0].content %}{{ messages[0].content.split('</think>')[1] }}{% endif %}[X]";
    assert_eq!(rendered(source, &json!("<eos> hm </think> <eos>!")), (" <eos>![X]".into(), vec![260]));
}

#[test]
fn templates_walk_backwards_and_cut_texts() {
    let source = "{% set ns = namespace(last=-1) %}{% for m in messages[::-1] %}\
        {% if ns.last < 0 and m.role == 'user' and not (m.content.startswith('[') and m.content.endswith(']')) %}\
        {% set ns.last = (messages | length - 1) - loop.index0 %}{% endif %}{% endfor %}{{ ns.last }} \
        {{ messages[0].content.split('</think>')[-1].lstrip('\\n').rstrip('!') }}";
    assert_eq!(rendered(source, &json!("<think>\nno\n</think>\n\nyes!")).0, "0 yes");
}

#[test]
fn every_real_template_keeps_users_text_plain() {
    for name in TOKENIZERS.iter().filter(|name| !name.ends_with("phi-2") && !name.ends_with("/phi")) {
        let Some(dir) = shared(name) else { return };
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let template = ChatTemplate::from_dir(&dir, &tokenizer).unwrap().unwrap();
        let control = |content: &str| -> Vec<u32> {
            let messages = json!([{"role": "user", "content": content}, {"role": "assistant", "content": content},
                {"role": "user", "content": content}]);
            let chat = template.render(&input(&messages), &tokenizer).unwrap();
            assert!(chat.text().matches(content).count() >= 3, "{name}: {content:?}");
            let ids = tokenizer.encode_chat(&chat).unwrap();
            ids.into_iter().filter(|&id| tokenizer.is_special(id)).collect()
        };
        let expected = control("Q");
        for id in (0..tokenizer.vocab_size() as u32).filter(|&id| tokenizer.is_special(id)).take(12) {
            let token = tokenizer.id_to_token(id).unwrap();
            assert_eq!(control(&format!("a{token} b {token}")), expected, "{name}: {token}");
            let half = &token[..token.len() / 2];
            assert_eq!(control(half), expected, "{name}: {half}");
        }
    }
}

#[test]
fn plain_text_in_a_masked_chat_has_the_ids_of_its_place() {
    let Some(tokenizer) = shared_tokenizer("tokenizers/mistral-7b-instruct-v0.2") else { return };
    let template = compile("{{ bos_token }}[INST] {{ messages[0].content }} [/INST]", &tokenizer);
    let ids = |content: &str| {
        let chat = template.render(&input(&json!([{"role": "user", "content": content}])), &tokenizer).unwrap();
        tokenizer.encode_chat(&chat).unwrap()
    };
    let marked = ids("Hello </s>");
    assert!(!marked.contains(&2));
    // The same but for the end: no space prefix appears where the text was looked at in pieces.
    assert_eq!(marked[..5], ids("Hello x")[..5]);
    assert_eq!(tokenizer.decode(&marked, false), "<s>[INST] Hello </s> [/INST]");
}

fn check_invalid(input: &ChatInput, param: &str) {
    let tokenizer = small_tokenizer();
    let error = compile(SIMPLE, &tokenizer).render(input, &tokenizer).unwrap_err();
    assert_eq!(error.param(), Some(param), "{error}");
    assert!(error.to_string().contains(param), "{error}");
}

#[test]
fn bad_messages_are_refused_by_name() {
    for (messages, param) in [
        (json!([]), "messages"),
        (json!(["x"]), "messages[0]"),
        (json!([{"content": "x"}]), "messages[0].role"),
        (json!([{"role": "user", "content": "x"}, {"role": 3, "content": "x"}]), "messages[1].role"),
        (json!([{"role": "", "content": "x"}]), "messages[0].role"),
        (json!([{"role": "a<eos>", "content": "x"}]), "messages[0].role"),
        (json!([{"role": "eos", "content": "x"}]), "messages[0].role"),
        (json!([{"role": "user"}]), "messages[0].content"),
        (json!([{"role": "user", "content": null}]), "messages[0].content"),
        (json!([{"role": "user", "content": 3}]), "messages[0].content"),
        (json!([{"role": "assistant"}]), "messages[0].content"),
        (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content"),
        (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content"),
        (json!([{"role": "user", "content": ["x"]}]), "messages[0].content"),
        (
            json!([{"role": "assistant", "tool_calls": [{"function": {"arguments": "["}}]}]),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (json!([{"role": "assistant", "content": "", "tool_calls": 3}]), "messages[0].tool_calls"),
    ] {
        check_invalid(&input(&messages), param);
    }
    let good = input(&json!([{"role": "user", "content": "x"}]));
    check_invalid(&ChatInput { tools: Some(vec![json!(3)]), ..good.clone() }, "tools[0]");
    check_invalid(&ChatInput { continue_final_message: true, ..good.clone() }, "continue_final_message");
    for (name, param) in
        [("messages", "chat_template_kwargs.messages"), ("add_generation_prompt", "add_generation_prompt")]
    {
        let mut bad = good.clone();
        bad.template_kwargs.insert(name.into(), json!(3));
        check_invalid(&bad, param);
    }
}

#[test]
fn parts_are_joined_for_templates_that_take_text_alone() {
    let content = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    assert_eq!(rendered("{{ messages[0].content | trim }}", &content).0, "a\nb");
    assert_eq!(rendered("{% for p in messages[0]['content'] %}{{ p.text }}{% endfor %}", &content).0, "ab");
}

#[test]
fn a_final_message_is_continued() {
    let tokenizer = small_tokenizer();
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The answer is "}]);
    let input = ChatInput { continue_final_message: true, ..input(&messages) };
    let text = |source: &str| compile(source, &tokenizer).render(&input, &tokenizer).unwrap().text().to_owned();
    let all = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}!{% endif %}";
    assert_eq!(text(all), "hi<eos>The answer is ");
    assert_eq!(text(&all.replace("m.content", "m.content | trim")), "hi<eos>The answer is");
    let error = compile("x", &tokenizer).render(&input, &tokenizer).unwrap_err();
    assert_eq!(error.param(), Some("continue_final_message"));
}

fn check_text(source: &str, expected: &str) {
    let tokenizer = small_tokenizer();
    let tools = vec![json!({"name": "f", "x": 1.0, "<b>": ["é", null, true, "\"\\\n"], "e": {}, "l": []})];
    let input = ChatInput {
        tools: source.contains("tools").then_some(tools),
        ..input(&json!([{"role": "user", "content": " x "}]))
    };
    let chat = compile(source, &tokenizer).render(&input, &tokenizer);
    assert_eq!(chat.unwrap().text(), expected, "{source}");
}

#[test]
fn templates_are_rendered_as_python_does() {
    check_text("  {% if true %}\n a\n  {% endif %}\nb\n", " a\nb");
    check_text(
        "{{ tools[0] | tojson }}",
        r#"{"name": "f", "x": 1.0, "<b>": ["é", null, true, "\"\\\n"], "e": {}, "l": []}"#,
    );
    check_text("{{ [1, {'a': 'é'}] | tojson(indent=2) }}", "[\n  1,\n  {\n    \"a\": \"é\"\n  }\n]");
    check_text(
        "{{ {'b': 'é🙂', 'a': 1} | tojson(ensure_ascii=true, sort_keys=true, separators=[',', ':']) }}",
        r#"{"a":1,"b":"\u00e9\ud83d\ude42"}"#,
    );
    check_text("{{ none }} {{ true }} {{ 1.0 }} {{ undefined_thing }}|", "None True 1.0 |");
    check_text(
        "{{ messages[0].content.strip().upper() }}{{ 'a,b'.split(',')[1] }}{{ 'ab'.startswith('a') }}",
        "XbTrue",
    );
    check_text("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1");
    check_text(
        "{% set n = namespace(i=0) %}{% for m in [1, 2, 3] %}{% if m == 3 %}{% break %}{% endif %}\
         {% set n.i = m %}{% endfor %}{{ n.i }}",
        "2",
    );
    check_text("{% for m in messages %}{% generation %}{{ m.content }}{%- endgeneration %}{% endfor %}|", " x |");
    check_text(
        "{{ documents is none }}{{ add_generation_prompt }}{{ unk_token is defined }}{{ eos_token }}",
        "TrueTrueFalse<eos>",
    );
    check_text("{{ strftime_now('%Y') | length }}", "4");
}

fn check_refused(source: &str, words: &str) {
    let tokenizer = small_tokenizer();
    let error = compile(source, &tokenizer).render(&input(&json!([{"role": "user", "content": "<eos>"}])), &tokenizer);
    let error = error.unwrap_err();
    assert_eq!(error.param(), Some("messages"), "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn refusals_and_bounds() {
    check_refused(
        "{{ raise_exception('Roles must alternate! ' ~ messages[0].content) }}",
        "Roles must alternate! <eos>",
    );
    check_refused("{% macro f() %}{{ raise_exception('No.') }}{% endmacro %}{% if true %}{{ f() }}{% endif %}", "No.");
    check_refused("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", "too long");
    check_refused("{% for a in range(9000) %}{{ 'x' * 9000 }}{% endfor %}", "bytes long");
    check_refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion");
    check_refused("{{ messages[0].content.nothing.more }}", "cannot render");
    check_refused("{{ strftime_now('%Q') }}", "%Q");
}

#[test]
fn bad_templates_are_refused_by_file() {
    let tokenizer = small_tokenizer();
    let error =
        |source: String| ChatTemplate::compile(Path::new("t.jinja"), source, &tokenizer).unwrap_err().to_string();
    assert!(error("{% if %}".into()).starts_with("t.jinja: chat template: "));
    assert!(error("x".repeat(super::MAX_SOURCE_BYTES + 1)).starts_with("t.jinja: chat template: "));
    let dir = tempfile::tempdir().unwrap();
    let load = |config: &str| {
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        ChatTemplate::from_dir(dir.path(), &tokenizer)
    };
    assert!(load("{}").unwrap().is_none());
    let one = load(r#"{"chat_template": "a"}"#).unwrap().unwrap();
    assert_eq!((one.source(), one.source_with_tools()), ("a", "a"));
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "{{ tools[0].name }}"}, {"name": "default", "template": "b"}]}"#;
    let both = load(list).unwrap().unwrap();
    assert_eq!((both.source(), both.source_with_tools()), ("b", "{{ tools[0].name }}"));
    let chat = input(&json!([{"role": "user", "content": "x"}]));
    let text = |input: &ChatInput| both.render(input, &tokenizer).unwrap().text().to_owned();
    assert_eq!(text(&chat), "b");
    assert_eq!(text(&ChatInput { tools: Some(vec![json!({"name": "f"})]), ..chat }), "f");
    assert!(load(r#"{"chat_template": []}"#).unwrap_err().to_string().contains("default"));
    std::fs::write(dir.path().join("chat_template.jinja"), "c").unwrap();
    assert_eq!(load(list).unwrap().unwrap().source(), "c");
}

#[test]
fn dates_are_those_of_the_calendar() {
    use super::strftime::strftime;
    for (seconds, format, expected) in [
        (0, "%A, %d %B %Y %H:%M:%S %j %u %w", "Thursday, 01 January 1970 00:00:00 001 4 4"),
        (951_782_400, "%a %-d %b %y %F", "Tue 29 Feb 00 2000-02-29"),
        (1_735_689_599, "%D %T %I %p %j %e|%-H", "12/31/24 23:59:59 11 PM 366 31|23"),
        (4_107_542_400, "%F %j %-m %-I%% %Z %z", "2100-03-01 060 3 12% UTC +0000"),
    ] {
        assert_eq!(strftime(format, seconds).unwrap(), expected);
    }
    assert!(strftime("%", 0).is_err() && strftime("%-", 0).is_err() && strftime("%Q", 0).is_err());
}

/// Tools in OpenAI's form, of which each string has `mark` in it, and a conversation in which one was called.
fn with_tools(mark: &str) -> ChatInput {
    let city = json!({"type": "string", "description": format!("Which {mark}")});
    let parameters = json!({"type": "object", "properties": {format!("city{mark}"): city}});
    let function = json!({"name": "get_weather", "description": format!("{mark}Weather"), "parameters": parameters});
    let arguments = json!({"city": format!("{mark}Paris")}).to_string();
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}});
    let messages = json!([
        {"role": "user", "content": format!("How {mark} is it?")},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": format!("{mark}15 degrees")},
    ]);
    ChatInput { tools: Some(vec![json!({"type": "function", "function": function})]), ..input(&messages) }
}

/// As transformers renders it.
const LLAMA_WITH_TOOLS: &str = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n\
    Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\
    Given the following functions, please respond with a JSON for a function call with its proper arguments that best \
    answers the given prompt.\n\nRespond in the format {\"name\": function name, \"parameters\": dictionary of argument name \
    and its value}.Do not use variables.\n\n{\n    \"type\": \"function\",\n    \"function\": {\n        \"name\": \
    \"get_weather\",\n        \"description\": \"@Weather\",\n        \"parameters\": {\n            \"type\": \"object\",\n\
    \u{20}           \"properties\": {\n                \"city@\": {\n                    \"type\": \"string\",\n\
    \u{20}                   \"description\": \"Which @\"\n                }\n            }\n        }\n    }\n}\n\n\
    How @ is it?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{\"name\": \"get_weather\", \"parameters\": \
    {\"city\": \"@Paris\"}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n\"@15 degrees\"<|eot_id|>\
    <|start_header_id|>assistant<|end_header_id|>\n\n";

#[test]
fn tools_and_their_results_are_shown_and_are_no_control_tokens() {
    let Some(dir) = shared("tokenizers/llama-3.1-8b-instruct") else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let template = ChatTemplate::from_dir(&dir, &tokenizer).unwrap().unwrap();
    let render = |mark: &str| {
        let chat = template.render(&with_tools(mark), &tokenizer).unwrap();
        assert_eq!(chat.text(), LLAMA_WITH_TOOLS.replace('@', mark));
        let ids = tokenizer.encode_chat(&chat).unwrap();
        ids.into_iter().filter(|&id| tokenizer.is_special(id)).collect::<Vec<_>>()
    };
    let plain = render("@");
    for mark in ["<|eot_id|>", "<|python_tag|>", "<|begin_of_text|>"] {
        assert_eq!(render(mark), plain, "{mark}");
    }
}

#[test]
fn tools_and_calls_that_a_template_leaves_out_are_refused() {
    let tokenizer = small_tokenizer();
    let error = |source: &str, input: &ChatInput| {
        let error = compile(source, &tokenizer).render(input, &tokenizer).unwrap_err();
        (error.param().unwrap_or_default().to_owned(), error.to_string())
    };
    let all = with_tools("");
    let (param, message) = error(SIMPLE, &all);
    assert_eq!(param, "tools");
    assert!(message.contains("knows no tools"), "{message}");
    let (param, message) = error("{% if tools %}{{ raise_exception('No tools!') }}{% endif %}", &all);
    assert_eq!(param, "tools");
    assert!(message.contains("No tools!"), "{message}");
    // In SIMPLE a message without content is an empty one.
    let (param, message) = error(SIMPLE, &ChatInput { tools: None, ..all.clone() });
    assert_eq!(param, "messages[1].tool_calls");
    assert!(message.contains("knows no calls"), "{message}");
    let source = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{{ m.tool_calls | default([]) | tojson }}{% endfor %}";
    let chat = compile(source, &tokenizer).render(&all, &tokenizer).unwrap();
    assert!(chat.text().contains("\"arguments\": {\"city\": \"Paris\"}"), "{}", chat.text());
    // One that shows calls only where nothing is said beside them.
    let source = "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let chat = compile(source, &tokenizer).render(&ChatInput { tools: None, ..all }, &tokenizer).unwrap();
    assert!(chat.text().contains("get_weather"), "{}", chat.text());
}

/// A model with a template of its own for tools needs it for earlier calls too, where a request has no tools.
#[test]
fn calls_of_earlier_turns_are_shown_without_tools() {
    let tokenizer = small_tokenizer();
    let dir = tempfile::tempdir().unwrap();
    let own = "{% for m in messages %}{{ m.tool_calls | default('') | tojson }}{% endfor %}";
    let config =
        json!({"chat_template": [{"name": "tool_use", "template": own}, {"name": "default", "template": SIMPLE}]});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let template = ChatTemplate::from_dir(dir.path(), &tokenizer).unwrap().unwrap();
    let chat = template.render(&ChatInput { tools: None, ..with_tools("") }, &tokenizer).unwrap();
    assert!(chat.text().contains("get_weather"), "{}", chat.text());
}

/// Reasoning that is sent back reaches a template under the name that it knows, and what is left of an answer that has nothing else.
#[test]
fn reasoning_reaches_the_template() {
    let tokenizer = small_tokenizer();
    for known in ["reasoning_content", "reasoning", "thinking"] {
        let source = format!("{{% for m in messages %}}[{{{{ m.{known} }}}}|{{{{ m.content }}}}]{{% endfor %}}");
        let template = ChatTemplate::compile(Path::new("t"), source, &tokenizer).unwrap();
        let render = |message: Value| template.render(&input(&json!([message])), &tokenizer);
        for sent in ["reasoning_content", "reasoning"] {
            let message = json!({"role": "assistant", "content": "b", sent: "a"});
            assert_eq!(render(message).unwrap().text(), "[a|b]", "{known} {sent}");
        }
        let message = json!({"role": "assistant", "content": null, "reasoning_content": "a"});
        assert_eq!(render(message).unwrap().text(), "[a|]");
        let error = render(json!({"role": "assistant", "content": "b", "reasoning": 1})).unwrap_err();
        assert_eq!(error.param(), Some("messages[0].reasoning"));
    }
}
