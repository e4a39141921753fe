//! Calls in answers: what is found, however the text comes.

#![allow(clippy::unwrap_used)]

mod drawn;

use serde_json::{Value, json};

use super::AnswerPart::{Call, Text};
use super::*;
use crate::sample::uniform;

fn reader() -> CallReader {
    CallReader::new(tools().into())
}

/// The parts of an answer that comes in `pieces`, neighbouring texts joined.
fn read<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Vec<AnswerPart> {
    let mut reader = reader();
    let mut parts: Vec<AnswerPart> = pieces.into_iter().flat_map(|piece| reader.push(piece)).collect();
    parts.extend(reader.finish());
    let mut joined: Vec<AnswerPart> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Text(before)), Text(text)) => before.push_str(&text),
            (_, part) => joined.push(part),
        }
    }
    joined
}

fn call(name: &str, arguments: &str) -> AnswerPart {
    Call(ToolCall { name: name.into(), arguments: arguments.into() })
}

fn text(text: &str) -> AnswerPart {
    Text(text.into())
}

/// Answers, and their parts.
fn answers() -> Vec<(&'static str, Vec<AnswerPart>)> {
    let f = || call("f", r#"{"x": 1}"#);
    vec![
        // The forms, with marks and without.
        ("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>", vec![f()]),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}</tool_call>\n<tool_call>\n{\"name\": \"get_time\", \
             \"arguments\": {}}\n</tool_call>\n",
            vec![f(), call("get_time", "{}")],
        ),
        ("Let me see.\n<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}", vec![text("Let me see.\n"), f()]),
        (
            "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"x\": 1}}, {\"name\": \"f\", \"arguments\": {\"x\": 1}}]",
            vec![f(), f()],
        ),
        (" [{\"name\": \"f\", \"arguments\": {\"x\": 1}}]", vec![f()]),
        ("{\"name\": \"f\", \"parameters\": {\"x\": 1}}", vec![f()]),
        (
            "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"x\": 1}}; {\"name\": \"get_time\", \"parameters\": {}}",
            vec![f(), call("get_time", "{}")],
        ),
        (
            "\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n",
            vec![f(), f()],
        ),
        // Named, one after another; marks can come as such.
        (
            "[TOOL_CALLS]f[ARGS]{\"x\": 1}[TOOL_CALLS]get_time[CALL_ID]a1B2c3D4e[ARGS]{}",
            vec![f(), call("get_time", "{}")],
        ),
        (" \u{fddb}get_time\u{fddc} {\"[ARGS]\": \"}\"}", vec![call("get_time", "{\"[ARGS]\": \"}\"}")]),
        ("a [TOOL_CALLS]f{\"x\": 1} b", vec![text("a "), f(), text("b")]),
        // Arguments one by one, typed by the schema.
        (
            "<tool_call>\n<function=f>\n<parameter=unit>\nc\n</parameter>\n<parameter=n>\n7\n</parameter>\n</function>\n</tool_call>",
            vec![call("f", "{\"unit\": \"c\", \"n\": 7}")],
        ),
        (
            "Well.\n<function=f><parameter=text>\n<a>\n</parameter> 5\n\n</parameter><parameter=flag>True</parameter><parameter=n>x\n\
             </parameter></function>\n</tool_call>\n<tool_call><function=get_time>\n</function></tool_call>",
            vec![
                text("Well.\n"),
                call("f", "{\"text\": \"<a>\\n</parameter> 5\\n\", \"flag\": true, \"n\": \"x\"}"),
                call("get_time", "{}"),
            ],
        ),
        (
            "<function=f><parameter=list>[1, {\"a\": null}]</parameter><parameter=map>{\"x\": \"</function>\"}</parameter>\
             <parameter=maybe>null</parameter><parameter=other>12</parameter></function>",
            vec![call(
                "f",
                "{\"list\": [1, {\"a\": null}], \"map\": {\"x\": \"</function>\"}, \"maybe\": null, \"other\": \"12\"}",
            )],
        ),
        ("<tool_call><function=get_time> {\"x\": [2]} </function>", vec![call("get_time", "{\"x\": [2]}")]),
        ("{\"arguments\": \"{\\\"x\\\": 1}\", \"type\": \"function\", \"name\": \"f\"}", vec![f()]),
        (
            "{\"name\": \"f\", \"arguments\": {\"é\": \"}]{\\\"\\\\\", \"y\": [{}, [\"<tool_call>\"]]}} Done; <",
            vec![call("f", "{\"é\": \"}]{\\\"\\\\\", \"y\": [{}, [\"<tool_call>\"]]}"), text("Done; <")],
        ),
        // Numbers are as the model has written them.
        (
            "{\"name\": \"f\", \"arguments\": {\"n\": 12345678901234567890123, \"x\": 1e400}}",
            vec![call("f", "{\"n\": 12345678901234567890123, \"x\": 1e400}")],
        ),
        // Between keys and values, typed by the schema.
        (
            "<tool_call>f\n<arg_key>unit</arg_key>\n<arg_value>c</arg_value>\n<arg_key>n</arg_key>\n<arg_value>7</arg_value>\n\
             <arg_key>text</arg_key>\n<arg_value>a</tool_call>\n</arg_value> </arg_value>\n</tool_call>\n<tool_call>get_time</tool_call>",
            vec![
                call("f", "{\"unit\": \"c\", \"n\": 7, \"text\": \"a</tool_call>\\n</arg_value> \"}"),
                call("get_time", "{}"),
            ],
        ),
        (
            "Well. <tool_call>f<arg_key>flag</arg_key><arg_value>true</arg_value><arg_key>other</arg_key><arg_value>12</arg_value>\
             </tool_call> Done",
            vec![text("Well. "), call("f", "{\"flag\": true, \"other\": \"12\"}"), text("Done")],
        ),
        // Behind a mark, or in a block of code.
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>\
             get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            vec![f(), call("get_time", "{}")],
        ),
        (
            "a <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\": 1}\n```<｜tool▁call▁end｜>\n\
             <｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{\"`\": \"```<｜tool▁call▁end｜>\"}\n```\
             <｜tool▁call▁end｜><｜tool▁calls▁end｜> b",
            vec![text("a "), f(), call("get_time", "{\"`\": \"```<｜tool▁call▁end｜>\"}"), text("b")],
        ),
        // As Python has them.
        (
            "<|tool_call_start|>[f(x=1), get_time( ), f(a = 'it\\'s \"\\n', b=[True, None,], c={'d': -1.5e3, \"é\": false})]\
             <|tool_call_end|>So",
            vec![
                f(),
                call("get_time", "{}"),
                call("f", "{\"a\": \"it's \\\"\\n\", \"b\": [true, null], \"c\": {\"d\": -1.5e3, \"é\": false}}"),
                text("So"),
            ],
        ),
        ("<|tool_call_start|>[f(a=\"\\u00e9\\ud83d\\ude00\\x41)]\")]", vec![call("f", "{\"a\": \"é😀A)]\"}")]),
        ("<|tool_call_start|>[{\"name\": \"f\", \"arguments\": {\"x\": 1}}]<|tool_call_end|>", vec![f()]),
        // What is none.
        ("<tool_call>g<arg_key>", vec![text("<tool_call>g<arg_key>")]),
        ("<tool_call>f\n</arg_key></tool_call>", vec![text("<tool_call>f\n</arg_key></tool_call>")]),
        ("<tool_call>f<arg_key>n</arg_key><arg_value>1", vec![text("<tool_call>f<arg_key>n</arg_key><arg_value>1")]),
        ("<｜tool▁calls▁begin｜>f", vec![text("<｜tool▁calls▁begin｜>f")]),
        ("<｜tool▁call▁begin｜>f<｜tool▁sep｜>{} x", vec![text("<｜tool▁call▁begin｜>f<｜tool▁sep｜>{} x")]),
        ("<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}", vec![text("<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}")]),
        ("<|tool_call_start|>[f(1)]", vec![text("<|tool_call_start|>[f(1)]")]),
        ("<|tool_call_start|>[f(a=x), f()]", vec![text("<|tool_call_start|>[f(a=x), f()]")]),
        ("<|tool_call_start|>[g()]", vec![text("<|tool_call_start|>[g()]")]),
        ("<|tool_call_start|>[f(a='", vec![text("<|tool_call_start|>[f(a='")]),
        ("[TOOL_CALLS]g[ARGS]{}", vec![text("[TOOL_CALLS]g[ARGS]{}")]),
        ("[TOOL_CALLS]f [ARGS]{} [TOOL_CALLS]f[ARGS]1", vec![text("[TOOL_CALLS]f [ARGS]{} [TOOL_CALLS]f[ARGS]1")]),
        ("[TOOL_CALLS]f[ARGS]", vec![text("[TOOL_CALLS]f[ARGS]")]),
        ("<function=g></function>", vec![text("<function=g></function>")]),
        ("<tool_call><function=f><parameter=n>1", vec![text("<tool_call><function=f><parameter=n>1")]),
        ("<function=f>x</function> y", vec![text("<function=f>x</function> y")]),
        ("Use <function=name> as in C", vec![text("Use <function=name> as in C")]),
        ("", vec![]),
        (" \n", vec![text(" \n")]),
        ("é{\"x\": \"é", vec![text("é{\"x\": \"é")]),
        ("<tool_call>\u{fffd}", vec![text("<tool_call>\u{fffd}")]),
        ("Hello, [world] {x} <b>!", vec![text("Hello, [world] {x} <b>!")]),
        ("{\"name\": \"g\", \"arguments\": {}}", vec![text("{\"name\": \"g\", \"arguments\": {}}")]),
        ("{\"name\": \"f\"} {\"x\": 1}", vec![text("{\"name\": \"f\"} {\"x\": 1}")]),
        ("{\"name\": \"f\", \"arguments\": [1]}", vec![text("{\"name\": \"f\", \"arguments\": [1]}")]),
        (" {\"name\": \"f\", \"arguments\": {\"x\": 1", vec![text(" {\"name\": \"f\", \"arguments\": {\"x\": 1")]),
        ("{\"name\": \"f\", \"arguments\": {\"x\": 01}}", vec![text("{\"name\": \"f\", \"arguments\": {\"x\": 01}}")]),
        ("Say {\"name\": \"f\", \"arguments\": {}}", vec![text("Say {\"name\": \"f\", \"arguments\": {}}")]),
        ("<tool_call>\nno JSON</tool_call>", vec![text("<tool_call>\nno JSON</tool_call>")]),
        (" <tool_call>{\"<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}", vec![text(" <tool_call>{\""), f()]),
        ("<tool_call", vec![text("<tool_call")]),
        ("[TOOL_CALLS]", vec![text("[TOOL_CALLS]")]),
        ("[]", vec![text("[]")]),
        (
            "[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {}}]",
            vec![text("[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {}}]")],
        ),
        (
            "{\"name\": \"f\", \"arguments\": {\"x\": 1}}</tool_call>{\"name\": \"g\"}</tool_c",
            vec![f(), text("{\"name\": \"g\"}</tool_c")],
        ),
    ]
}

#[test]
fn calls_are_found_and_all_else_is_text() {
    for (answer, parts) in answers() {
        assert_eq!(read([answer]), parts, "{answer:?}");
    }
}

/// The pieces of `answer`, cut before some of its characters.
fn pieces(answer: &str, is_cut: impl Fn(usize) -> bool) -> Vec<&str> {
    let mut cuts: Vec<usize> = answer.char_indices().map(|(at, _)| at).filter(|&at| is_cut(at)).collect();
    cuts.insert(0, 0);
    cuts.push(answer.len());
    cuts.windows(2).map(|ends| &answer[ends[0]..ends[1]]).collect()
}

#[test]
fn how_the_text_comes_changes_nothing() {
    // Whatever follows on whatever, too.
    let one_by_one = answers().into_iter().map(|(answer, _)| answer.to_owned());
    let pairs = answers().into_iter().flat_map(|(a, _)| answers().into_iter().map(move |(b, _)| format!("{a}{b}")));
    for answer in one_by_one.chain(pairs) {
        let whole = read([answer.as_str()]);
        assert_eq!(read(pieces(&answer, |_| true)), whole, "{answer:?}");
        for seed in 0..4 {
            let pieces = pieces(&answer, |at| uniform(seed, 0, at as u32, 0) < 0.2);
            assert_eq!(read(pieces.clone()), whole, "{pieces:?}");
        }
    }
}

#[test]
fn whatever_a_model_writes_is_read() {
    let words = [
        r#"{"name": "f", "arguments": {}}"#,
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "<function=f>",
        "<parameter=n>",
        "</parameter>",
        "</function>",
        "[TOOL_CALLS]f[ARGS]",
        "<arg_key>",
        "</arg_key><arg_value>",
        "</arg_value>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n",
        "\n```",
        "<｜tool▁call▁end｜>",
        "<|tool_call_start|>[f(",
        "<|tool_call_end|>",
        "n=",
        "'",
        ")",
        "{\"name\": \"f\", ",
        "\"arguments\": ",
        "{}",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\\",
        "é",
        "\u{fffd}",
        " ",
        "\n",
        ";",
        ", ",
        "<",
        "f",
        "1",
    ];
    let mut num_calls = 0;
    for seed in 0..4000 {
        let draw = |position, num: usize| (uniform(seed, 0, position, 0) * num as f64) as usize;
        let answer: Vec<&str> =
            (1..2 + draw(0, 30) as u32).map(|position| words[draw(position, words.len())]).collect();
        let parts = read(answer.clone());
        assert_eq!(parts, read([answer.concat().as_str()]), "{answer:?}");
        assert_eq!(parts, read(pieces(&answer.concat(), |_| true)), "{answer:?}");
        num_calls += parts.iter().filter(|part| matches!(part, Call(_))).count();
        if parts.iter().all(|part| matches!(part, Text(_))) {
            assert_eq!(parts, [text(&answer.concat())], "{answer:?}");
        }
    }
    assert!(num_calls > 0);
}

/// Each would take hours if what has been looked at were looked at again for every mark in it.
#[test]
fn what_looks_like_many_calls_is_read_once() {
    for piece in [
        "<tool_call>{\"",
        "<tool_call>",
        "[TOOL_CALLS] [{\"a\": ",
        "<tool_call>{\"a\": {\"<tool_call>\": 1}}",
        "<|python_tag|> ",
        "<function=f>",
        "<function=f><parameter=n>1</parameter>\n",
        "<function=f><parameter=n></function> ",
        "[TOOL_CALLS]f[ARGS]{\"",
        "[TOOL_CALLS]f",
        "<tool_call>f<arg_key>",
        "<tool_call>f<arg_key>n</arg_key><arg_value>1</arg_value>",
        "<tool_call>f<arg_key>n</tool_call> ",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{",
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n",
        "<|tool_call_start|>[f(a='",
        "<|tool_call_start|>[f(a=[",
        "<|tool_call_start|>",
    ] {
        let answer = piece.repeat((2 << 20) / piece.len());
        assert_eq!(read([answer.as_str()]), [text(&answer)], "{piece}");
    }
    let nested = "<tool_call>{\"a\": ".repeat(100_000) + &"}".repeat(100_000);
    assert_eq!(read([nested.as_str()]), [text(&nested)]);
}

/// Each would take minutes if white space were looked at again with every piece that comes.
#[test]
fn endless_white_space_is_read_once() {
    const CALL: &str = "{\"name\": \"f\", \"arguments\": {}}";
    let blanks = " \n".repeat(200_000);
    for begin in ["", "<tool_call>", "{", "[TOOL_CALLS]f[ARGS]", "[TOOL_CALLS] [", "a"] {
        let answer = format!("{begin}{blanks}{CALL}");
        assert_eq!(read([answer.as_str()]), [text(&answer)], "{begin}");
        assert_eq!(read(pieces(&answer, |_| true)), [text(&answer)], "{begin}");
    }
    for blank in [" ", ";", "\u{3000}", "</tool_call>"] {
        let answer = format!("{CALL}{}b", blank.repeat(200_000));
        let parts = read([answer.as_str()]);
        assert_eq!(read(pieces(&answer, |_| true)), parts, "{blank}");
        assert_eq!((parts.len(), &parts[0]), (2, &call("f", "{}")));
    }
    // Some of it is around calls.
    let some = " ".repeat(1000);
    assert_eq!(
        read([format!("{some}<tool_call>{some}{CALL}{some}{CALL}").as_str()]),
        [call("f", "{}"), call("f", "{}")]
    );
}

#[test]
fn text_is_told_as_soon_as_it_cannot_become_a_call() {
    let mut reader = reader();
    assert_eq!(reader.push(" <"), []);
    assert_eq!(reader.push("b> a"), [text(" <b> a")]);
    assert_eq!(reader.push("b <tool_"), [text("b ")]);
    assert_eq!(reader.push("call>{\"name\": \"f\", \"arguments\": {"), []);
    assert_eq!(reader.push("}"), []);
    assert_eq!(reader.push("}\n</tool_call>"), [call("f", "{}")]);
    assert_eq!(reader.push(" c"), [text("c")]);
    assert_eq!(reader.finish(), []);
}

fn tools() -> Vec<Value> {
    let parameters = json!({"type": "object", "properties": {"unit": {"$ref": "#/$defs/unit"}, "n": {"type": "integer", "maximum": 99,
        "minimum": 0}, "text": {"type": "string", "minLength": 2, "maxLength": 5}, "flag": {"type": ["boolean", "null"]},
        "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "map": {"type": "object", "properties": {}, "additionalProperties": false},
        "maybe": {"anyOf": [{"const": 5}, {"type": "null"}]}, "other": {"type": "string", "enum": ["d", "e"]},
        "note": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "default": null}},
        "required": ["unit", "n"], "additionalProperties": false, "$defs": {"unit": {"enum": ["c", "f<s>"]}}});
    vec![
        json!({"type": "function", "function": {"name": "f", "parameters": parameters}}),
        json!({"type": "function", "function": {"name": "get_time", "description": "The time."}}),
    ]
}

#[test]
fn a_template_says_which_form() {
    for (source, form) in [
        ("{{ '<tool_call>\\n' }}", CallForm::Tagged),
        ("{{ '[TOOL_CALLS] [' }}", CallForm::List),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", CallForm::Named),
        ("{{ '<tool_call>\\n<function=' }}", CallForm::Xml),
        ("{{ '<tool_call>' + name + '\\n<arg_key>' }}", CallForm::Keys),
        ("{{ '<｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>' }}", CallForm::Separated),
        ("{{ '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + name + '\\n```json' }}", CallForm::Fenced),
        ("{{ '<|tool_list_start|>[' }}", CallForm::Pythonic),
        ("{{ '<|start|>assistant<|channel|>' }}", CallForm::Channels),
        ("{{ '{\"name\": \"' }}", CallForm::Object),
    ] {
        assert_eq!(CallForm::of(source), form, "{source}");
    }
}
