//! Grammars of calls: what is drawn by them is a call, and what they cannot be made of is refused.

use serde_json::{Map, Value, json};

use super::*;
use crate::text::testing::Subject;
use crate::text::{AnswerForm, ChatInput, Detokenizer, Section};

/// Arguments of `f` are as its schema has them.
fn check_arguments(arguments: &Value) {
    let members = arguments.as_object().unwrap();
    let has = |key: &str, holds: &dyn Fn(&Value) -> bool| assert!(members.get(key).is_none_or(holds), "{arguments}");
    assert!(members.contains_key("unit") && members.contains_key("n"), "{arguments}");
    has("unit", &|v| v == "c" || v == "f<s>");
    has("n", &|v| v.as_f64().is_some_and(|n| (0.0..=99.0).contains(&n) && n.fract() == 0.0));
    has("text", &|v| v.as_str().is_some_and(|text| (2..=5).contains(&text.chars().count())));
    has("flag", &|v| v.is_boolean() || v.is_null());
    has("list", &|v| v.as_array().is_some_and(|list| list.len() <= 2));
    has("map", &|v| v.as_object().is_some_and(Map::is_empty));
    has("maybe", &|v| v == 5 || v.is_null());
    has("other", &|v| v == "d" || v == "e");
    has("note", &|v| v.is_null() || v.as_str().is_some_and(|text| text.chars().count() <= 3));
    assert!(
        members.keys().all(|key| {
            ["unit", "n", "text", "flag", "list", "map", "maybe", "other", "note"].contains(&key.as_str())
        })
    );
}

/// The text of an answer, with the marks that calls of a form have.
fn text_of(subject: &Subject, form: CallForm, ids: &[u32], skips_special: bool) -> String {
    let tokenizer = &subject.tokenizer;
    let mut detokenizer = Detokenizer::new(&[], skips_special, true).with_marks(form.marks(tokenizer));
    let text: String = ids.iter().map(|&id| detokenizer.push(tokenizer, id)).collect();
    text + &detokenizer.finish(tokenizer)
}

fn check_drawn(subject: &Subject, form: CallForm, count: CallCount, skips_special: bool) -> usize {
    let tools = tools();
    let grammar = form.grammar(&tools, count, &subject.tokenizer).unwrap();
    let mut num_calls = 0;
    for seed in 0..8 {
        let answer = subject.draw_ids(&grammar, seed);
        let answer = text_of(subject, form, &answer, skips_special);
        let calls = read([answer.as_str()]);
        assert!(!calls.is_empty() && (count == CallCount::Many || calls.len() == 1), "{answer:?}");
        num_calls += calls.len();
        for part in calls {
            let Call(ToolCall { name, arguments }) = part else { panic!("{answer:?}: {part:?}") };
            let arguments: Value = serde_json::from_str(&arguments).unwrap();
            match name.as_str() {
                "get_time" => assert_eq!(arguments, json!({})),
                _ => check_arguments(&arguments),
            }
        }
    }
    num_calls
}

#[test]
fn what_is_drawn_by_a_grammar_is_a_call() {
    let plain = Subject::small();
    let further = [CALLS, END_CALLS, CALL, END_CALL, SEPARATOR, PYTHONIC, END_PYTHONIC];
    let marks = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"];
    let marked = Subject::small_with(&[&marks[..], &further[..]].concat());
    let forms = [
        CallForm::Tagged,
        CallForm::Xml,
        CallForm::Keys,
        CallForm::List,
        CallForm::Named,
        CallForm::Separated,
        CallForm::Fenced,
        CallForm::Pythonic,
        CallForm::Object,
    ];
    for form in forms {
        for (subject, skips_special) in [(&plain, true), (&marked, true), (&marked, false)] {
            // A small vocabulary does not spell the marks of all.
            if matches!(form, CallForm::Separated | CallForm::Fenced) && subject.tokenizer.token_to_id(CALL).is_none() {
                continue;
            }
            let one = check_drawn(subject, form, CallCount::One, skips_special);
            let many = check_drawn(subject, form, CallCount::Many, skips_special);
            assert_eq!(many > one, form != CallForm::Object, "{form:?}: {many} calls");
        }
    }
    // A mark that is a token is that token.
    let grammar = CallForm::List.grammar(&tools(), CallCount::One, &marked.tokenizer).unwrap();
    let ids = marked.draw_ids(&grammar, 0);
    assert_eq!(Some(ids[0]), marked.tokenizer.token_to_id("[TOOL_CALLS]"));
}

#[test]
fn as_many_tools_as_are_taken_can_be_required() {
    let subject = Subject::small();
    let tool = |i: usize| {
        let members =
            (0..8).map(|j| (format!("member_{j}"), json!({"enum": [i, "ö & ~ \\\" # // /x/ <b>", {"a": [j]}]})));
        let members: Map<String, Value> = members.collect();
        let parameters = json!({"properties": members, "required": ["member_0"], "additionalProperties": false});
        json!({"type": "function", "function": {"name": format!("f.{i}"), "parameters": parameters}})
    };
    let tools: Vec<Value> = (0..128).map(tool).collect();
    let grammar = CallForm::Tagged.grammar(&tools, CallCount::One, &subject.tokenizer).unwrap();
    let answer = subject.draw(&grammar, 1);
    assert!(matches!(CallReader::new(tools.into()).push(&answer)[..], [Call(_)]), "{answer}");
}

#[test]
fn a_message_to_a_function_is_a_call() {
    let channels = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>"];
    let subject = Subject::small_with(&channels);
    let form = AnswerForm::of("<|channel|>", &subject.tokenizer);
    let grammar = CallForm::Channels.grammar(&tools(), CallCount::Many, &subject.tokenizer).unwrap();
    let mut num_thoughts = 0;
    for seed in 0..24 {
        let mut reader = form.reader(&ChatInput::default(), "<|start|>assistant");
        let ids = subject.draw_ids(&grammar, seed);
        let mut sections: Vec<Section> = ids.iter().flat_map(|&id| reader.push_token(&subject.tokenizer, id)).collect();
        sections.extend(reader.finish());
        let Some(Section::Call(call)) = sections.pop() else { panic!("{sections:?}") };
        assert!(call.is_of(&tools()), "{call:?}");
        if call.name == "f" {
            check_arguments(&serde_json::from_str(&call.arguments).unwrap());
        }
        assert!(sections.iter().all(|section| matches!(section, Section::Reasoning(_))), "{sections:?}");
        num_thoughts += usize::from(!sections.is_empty());
    }
    assert!(num_thoughts > 0);
    let call = |name: &str, arguments: &str| ToolCall { name: name.into(), arguments: arguments.into() };
    assert!(call("get_time", " {}").is_of(&tools()));
    for (name, arguments) in [("g", "{}"), ("f", "1"), ("f", "{"), ("f", "")] {
        assert!(!call(name, arguments).is_of(&tools()), "{name} {arguments}");
    }
}

/// What is text by its schema and could be read as something else, or has to match more than a length, cannot be asked for.
#[test]
fn arguments_that_cannot_be_told_apart_are_refused() {
    let tokenizer = Subject::small().tokenizer;
    let grammar = |parameters: Value| {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
        CallForm::Xml.grammar(&[tool], CallCount::One, &tokenizer)
    };
    for own in [
        json!({"type": ["string", "integer"]}),
        json!({"type": "string", "pattern": "a"}),
        json!({"enum": ["a</parameter>"]}),
        json!({"enum": ["a", 1]}),
        json!({"anyOf": [{"type": "string"}, {"type": "object"}]}),
    ] {
        let error = grammar(json!({"properties": {"x": own}})).unwrap_err();
        assert!(error.param() == Some("tools") && error.to_string().contains("f: the schema of \"x\""), "{error}");
    }
    for parameters in [
        json!({"properties": {"x": {}}, "anyOf": [{"required": ["x"]}]}),
        json!({"required": ["x"]}),
        json!({"properties": {"a>b": {}}}),
    ] {
        assert_eq!(grammar(parameters).unwrap_err().param(), Some("tools"));
    }
    assert!(
        grammar(json!({"properties": {"x": {"const": "a"}, "y": {}, "z": {"type": "string", "description": "d"}}}))
            .is_ok()
    );
}

/// Schemas that refer to themselves and to each other are looked at once, however many ways lead there.
#[test]
fn schemas_that_go_round_in_circles_have_an_end() {
    let circle = |num: usize, further: Value| {
        let mut alternatives = further.as_array().unwrap().clone();
        alternatives.resize(alternatives.len() + num, json!({"$ref": "#/$defs/a"}));
        let parameters = json!({"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"anyOf": alternatives}}});
        json!({"type": "function", "function": {"name": "f", "parameters": parameters}})
    };
    let tokenizer = Subject::small().tokenizer;
    for tool in
        [circle(1, json!([])), circle(1000, json!([])), circle(1, json!([{"type": "null"}, {"type": "string"}]))]
    {
        let error = CallForm::Xml.grammar(&[tool], CallCount::One, &tokenizer).unwrap_err();
        assert!(error.to_string().contains("f: the schema of \"x\""), "{error}");
    }
    let tool = circle(1000, json!([{"type": "null"}]));
    let mut reader = CallReader::new([tool].into());
    let parts = reader.push("<function=f><parameter=x>None</parameter></function>");
    assert_eq!(parts, [call("f", "{\"x\": null}")]);
}

#[test]
fn arguments_that_python_has_no_names_for_are_refused() {
    let tokenizer = Subject::small().tokenizer;
    for name in ["a-b", "1", "", "é"] {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"properties": {name: {}}}}});
        let error = CallForm::Pythonic.grammar(&[tool], CallCount::One, &tokenizer).unwrap_err();
        assert!(error.to_string().contains(&format!("f: the name {name:?}")), "{error}");
    }
}
