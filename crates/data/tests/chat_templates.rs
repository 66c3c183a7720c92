//! Chat templates rendered beside transformers.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::path::{Path, PathBuf};

use lowrank_data::chat::{ChatTemplate, Message, RenderOptions};
use serde_json::{Map, Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat-templates")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What is wrong with our rendering of a case, if anything.
fn difference(template: &ChatTemplate, now: &str, conversation: &Value, case: &Value) -> Option<String> {
    let messages: Vec<Message> = serde_json::from_value(conversation["messages"].clone()).unwrap();
    let mut variables: Map<String, Value> = conversation["options"].as_object().cloned().unwrap_or_default();
    if let Some(documents) = conversation.get("documents") {
        variables.insert("documents".into(), documents.clone());
    }
    let options = RenderOptions {
        add_generation_prompt: case["add_generation_prompt"] == true,
        tools: conversation.get("tools"),
        variables,
        now: Some(now),
    };
    let got = template.render(&messages, &options);
    let Some(text) = case["text"].as_str() else {
        let message =
            case["message"].as_str().filter(|_| case["error"] == "TemplateError").unwrap_or_default();
        return match got {
            Err(error) if error.to_string().contains(message) => None,
            other => Some(format!("{other:?}, expected the error {} {message:?}", case["error"])),
        };
    };
    let got = match got {
        Ok(got) => got,
        Err(error) => return Some(format!("{error}, expected {text:?}")),
    };
    if got != text {
        return Some(format!("\n  {got:?}\n  {text:?}"));
    }
    let spans: Vec<(usize, usize)> = serde_json::from_value(case["spans"].clone()).unwrap_or_default();
    if !spans.is_empty() && !options.add_generation_prompt {
        let at = |byte: usize| got[..byte].chars().count();
        let found = template.answers(&messages, &options).unwrap().spans;
        let found: Vec<_> = found.into_iter().map(|span| (at(span.start), at(span.end))).collect();
        if found != spans {
            return Some(format!("spans {found:?}, expected {spans:?}"));
        }
    }
    None
}

#[test]
fn texts_and_errors_are_those_of_transformers() {
    let conversations = json(&fixtures().join("conversations.json"));
    let (mut wrong, mut n) = (Vec::new(), 0);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(fixtures().join("expected")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let expected = json(&path);
        let name = path.file_stem().unwrap().to_str().unwrap();
        let file = fixtures().join(format!("{name}.jinja"));
        let mut special = Map::new();
        for key in ["bos_token", "eos_token"] {
            special.insert(key.into(), expected[key].clone());
        }
        let source = std::fs::read_to_string(&file).unwrap();
        let template = ChatTemplate::new(&file, &source, special).unwrap();
        for case in expected["renderings"].as_array().unwrap() {
            let conversation = case["conversation"].as_str().unwrap();
            let now = expected["now"].as_str().unwrap();
            n += 1;
            if let Some(difference) = difference(&template, now, &conversations[conversation], case) {
                let prompt = &case["add_generation_prompt"];
                wrong.push(format!("{name}, {conversation}, prompt {prompt}: {difference}"));
            }
        }
    }
    assert!(n > 500 && wrong.is_empty(), "{} of {n}\n{}", wrong.len(), wrong.join("\n"));
}

/// Renders a template for one short message.
fn rendered(source: &str) -> Result<String, String> {
    let template =
        ChatTemplate::new("x.jinja".as_ref(), source, Map::default()).map_err(|e| e.to_string())?;
    template.render(&[Message::new("user", "hi")], &RenderOptions::default()).map_err(|e| e.to_string())
}

/// A loop that assigns `step` to `ns.x` many times, and a use of it.
fn grown(first: &str, step: &str, end: &str) -> String {
    format!(
        "{{% set ns = namespace(x={first}) %}}{{% for i in range(90000) %}}{{% set ns.x = {step} %}}{{% endfor %}}{end}"
    )
}

#[test]
fn templates_without_end_are_refused() {
    let (fuel, deep) = ("too many steps or too much memory", "nested more than 200 levels deep");
    let share = grown("['a' * 16]", "[ns.x, ns.x]", "");
    let sources = [
        ("{% for i in range(10**9) %}x{% endfor %}".to_owned(), "too many elements"),
        ("{{ 'a' * 10**9 }}".to_owned(), fuel),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".to_owned(), "recursion limit"),
        ("{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('aaaa') }}".to_owned(), ""),
        (grown("'aaaa'", "ns.x ~ ns.x", ""), fuel),
        (grown("'aaaa'", "ns.x.join([ns.x, ns.x, ns.x])", ""), fuel),
        // Lazy sums and repetitions.
        (grown("[1]", "ns.x + ns.x", "{{ ns.x|length }}"), fuel),
        (grown("[1]", "ns.x[0:1]", "{{ ns.x|length }}"), ""),
        // Nesting overflows the stack where a value is dropped, printed or compared.
        (grown("[1]", "[ns.x]", ""), deep),
        (grown("1", "{'a': ns.x}", ""), deep),
        (grown("1", "(ns.x, 1)", ""), deep),
        (share, ""),
        // A value of 2⁶⁰ items in sixty lists.
        (
            "{% macro f(x, n) %}{% if n > 0 %}{{ f([x, x], n - 1) }}{% else %}{{ x ~ '' }}{% endif %}{% endmacro %}\
             {{ f('a', 60) }}"
                .to_owned(),
            fuel,
        ),
        (format!("{}{{{{ x }}}}", "{% set x = [x, x] %}".repeat(60)), fuel),
        (format!("{}{{{{ x|tojson }}}}", "{% set x = {'a': x, 'b': x} %}".repeat(60)), fuel),
        (format!("{}{{{{ x|string|length }}}}", "{%- set x = [x, x] -%}".repeat(60)), fuel),
        // A namespace that contains itself.
        ("{% set a = namespace(x=1) %}{% set a.x = a %}{{ a }}".to_owned(), "not supported"),
        ("{% set a = namespace(x=1) %}{% set a.x = [a] %}{{ a|tojson }}".to_owned(), "not supported"),
        ("{{ '{:>10000000000}'.format(3) }}".to_owned(), "exceeds 10000"),
        (format!("{{{{ '{}'.format(3) }}}}", "{0:>9999}".repeat(9000)), fuel),
        // Chains that overflow the compiler's stack.
        (format!("{{{{ {}1 }}}}", "-".repeat(100_000)), "operators"),
        (format!("{{{{ 1{} }}}}", "+1".repeat(100_000)), "operators"),
        (format!("{{{{ 1{} }}}}", ".a".repeat(100_000)), "operators"),
        (format!("{{{{ 1{} }}}}", "**1".repeat(100_000)), "operators"),
        (format!("{{% if {}1 %}}{{% endif %}}", "not ".repeat(100_000)), "operators"),
        ("x".repeat(2 << 20), "the limit is"),
    ];
    for (source, part) in sources {
        let start = std::time::Instant::now();
        let result = rendered(&source);
        let shown: String = source.chars().take(200).collect();
        match result {
            Err(error) => assert!(error.contains(part) && error.lines().count() == 1, "{shown}: {error}"),
            Ok(_) => assert_eq!(part, "", "{shown}"),
        }
        assert!(start.elapsed().as_secs() < 5, "{shown}: {:?}", start.elapsed());
    }
}

/// Python's dictionaries keep the order of a literal and of keyword arguments.
#[test]
fn dictionaries_keep_their_order() {
    let source = "{{ {'z': 1, 'b': {'y': 2, 'a': 3}} | tojson }}|{% set d = {'z': 1, 'a': 2} %}{{ d }}|\
                  {% for k in {'z': 1, 'a': 2} %}{{ k }}{% endfor %}|{{ dict(z=1, a=2) | tojson }}|\
                  {% set ns = namespace(d={'z': 1, 'a': 2}) %}{{ ns.d | tojson }}";
    assert_eq!(
        rendered(source).unwrap(),
        "{\"z\": 1, \"b\": {\"y\": 2, \"a\": 3}}|{'z': 1, 'a': 2}|za|{\"z\": 1, \"a\": 2}|{\"z\": 1, \"a\": 2}"
    );
}

/// The expected texts are those of transformers' environment on Jinja 3.1.
#[test]
fn containers_are_printed_as_python_prints_them() {
    for (source, expected) in [
        ("{{ (1, 2) }}{{ (1,) }}{{ () }}{{ [(1, 'a'), [2]] }}", "(1, 2)(1,)()[(1, 'a'), [2]]"),
        ("{{ {1: 'a', '1': 'b'} }}", "{1: 'a', '1': 'b'}"),
        ("{{ {True: 1, False: [none], None: 2.5} }}", "{True: 1, False: [None], None: 2.5}"),
        ("{{ {(1, 2): 'x', 1.5: 'y', 1e16: 'z'} }}", "{(1, 2): 'x', 1.5: 'y', 1e+16: 'z'}"),
        ("{{ {'b': 1, 'a': 2} | dictsort }}", "[('a', 2), ('b', 1)]"),
        ("{{ {'b': 1} | items | list }}{{ {'b': 1}.items() | list }}", "[('b', 1)][('b', 1)]"),
        ("{{ 'a=b'.partition('=') }}{{ 'ab'.rpartition('=') }}", "('a', '=', 'b')('', '', 'ab')"),
        (
            "{{ [{'k': 1, 'v': 2}, {'k': 1, 'v': 3}] | groupby('k') }}",
            "[(1, [{'k': 1, 'v': 2}, {'k': 1, 'v': 3}])]",
        ),
        (
            "{{ (1, 2) + (3,) }}{{ (1, 2)[:1] }}{{ (1, 2) * 2 }}{{ (1, 2) | list }}",
            "(1, 2, 3)(1,)(1, 2, 1, 2)[1, 2]",
        ),
        ("{{ (1, 2) | string | length }}|{{ [(1,)] | string }}", "6|[(1,)]"),
        ("{{ (1, 2) ~ '' }}|{{ [(1,), 'a'] | join('-') }}", "(1, 2)|(1,)-a"),
        ("{{ (true, none, 'it\\'s') }}{% set a = (1, [2]) %}{{ a }}", "(True, None, \"it's\")(1, [2])"),
        ("{{ [99999999999999999999, -0.0, 'nan' | float] }}", "[99999999999999999999, -0.0, nan]"),
        ("{{ dict(a=1) }}{{ {'a': {1: {2: ()}}} }}{{ [missing] }}", "{'a': 1}{'a': {1: {2: ()}}}[Undefined]"),
        ("{{ {1: (2, 'x')} | tojson }}{{ {true: 1} | tojson }}", "{\"1\": [2, \"x\"]}{\"true\": 1}"),
    ] {
        assert_eq!(rendered(source).as_deref(), Ok(expected), "{source}");
    }
}

/// The expected texts are those of transformers 5.23.
#[test]
fn namespaces_are_assigned_inside_blocks_that_do_not_read_them() {
    for (source, expected) in [
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% generation %}{% set ns.n = 7 %}{{ m.content }}\
             {% endgeneration %}{% endfor %}{{ ns.n }}",
            "hi7",
        ),
        (
            "{% set ns = namespace(n=0) %}{% macro mark() %}{% set ns.n = 7 %}{% endmacro %}{{ mark() }}{{ ns.n }}",
            "7",
        ),
        (
            "{% set ns = namespace(n=0) %}{%- macro mark(x) -%}{%- set ns.n = x ~ '.' -%}{%- endmacro -%}{{ mark(3) }}{{ ns.n }}",
            "3.",
        ),
    ] {
        assert_eq!(rendered(source).as_deref(), Ok(expected), "{source}");
    }
    let error = rendered("{% set a = 1 %}{% set a.x = 2 %}").unwrap_err();
    assert!(error.contains("can only assign to namespaces"), "{error}");
}

#[test]
fn what_templates_really_do_is_within_the_limits() {
    let long = "{% set ns = namespace(seen=[]) %}{% for i in range(500) %}{% set ns.seen = ns.seen + [i] %}{% endfor %}\
                {{ ns.seen|length }} {{ ns.seen[-1] }} {{ '{:>5}|{}'.format(3, 'x') }}";
    assert_eq!(rendered(long).unwrap(), "500 499     3|x");
    let lists = "{% set a, b = [1, 2], {'k': [1, {'n': none}]} %}{% set t = (1, 2) %}{% set s = 'ab'[::-1] %}\
                 {% set d = b.items()|list %}{{ a }} {{ b }} {{ t }} {{ s }} {{ d }}{% set x = missing %}{{ x is defined }}";
    assert_eq!(
        rendered(lists).unwrap(),
        "[1, 2] {'k': [1, {'n': None}]} (1, 2) ba [('k', [1, {'n': None}])]False"
    );
}

/// The texts are those of `apply_chat_template` in transformers 5.23.
#[test]
fn messages_reach_a_template_as_in_transformers() {
    let render = |source: &str, messages: Value| {
        let template = ChatTemplate::new("t.jinja".as_ref(), source, Map::new()).unwrap();
        let messages: Vec<Message> =
            messages.as_array().unwrap().iter().map(|message| Message::from_json(message).unwrap()).collect();
        let dropped = template.dropped(&messages, &RenderOptions::default()).unwrap();
        assert_eq!(dropped, None, "{source}");
        template.render(&messages, &RenderOptions::default()).unwrap()
    };
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": " world"}]}]);
    let trimmed = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
                   {% for c in m.content %}{{ c.text | trim }}{% endfor %}{% endif %}{% endfor %}";
    assert_eq!(render(trimmed, parts.clone()), "Helloworld");
    assert_eq!(render("{{ messages[0]['content'][0]['text'] }}", parts.clone()), "Hello ");
    // Templates for texts alone: transformers writes Python's list or fails.
    for texts_alone in
        ["{{ messages[0].content }}", "{{ messages[0].content.strip() }}", "{{ 'a' + messages[0].content }}"]
    {
        assert!(render(texts_alone, parts.clone()).ends_with("Hello  world"), "{texts_alone}");
    }
    // Filters on the content do not hide the list, each role is judged separately, and `[]` in the output is not mistaken for
    // a list.
    assert_eq!(render("{{ messages[0].content | upper }}[]", parts.clone()), "HELLO  WORLD[]");
    let mixed = json!([{"role": "system", "content": [{"type": "text", "text": "S"}]}, parts[0]]);
    let by_role = "{% for m in messages %}{% if m.role == 'user' %}{% for c in m.content %}<{{ c.text }}>{% endfor %}\
                   {% else %}{{ m.content }}{% endif %}{% endfor %}";
    assert_eq!(render(by_role, mixed), "S<Hello >< world>");
    // Text beside a tool call may be omitted by the template.
    let called = json!([{"role": "assistant", "content": "aside", "tool_calls": [{"name": "f"}]}]);
    assert_eq!(render("{% for m in messages %}{{ m.tool_calls[0].name }}{% endfor %}", called.clone()), "f");
    let both = "{{ messages[0].content }}{{ messages[0].tool_calls[0].name }}";
    assert_eq!(render(both, called), "asidef");
    let calls = json!([{"role": "assistant", "content": null, "tool_calls": [1], "name": null}]);
    assert_eq!(
        render(
            "{% for m in messages %}{{ m | tojson }}{{ m.content }}{{ m.name is defined }}{% endfor %}",
            calls
        ),
        "{\"role\": \"assistant\", \"tool_calls\": [1]}False"
    );
    let reasoned = json!([{"role": "assistant", "content": "b", "reasoning": "R"}, {"role": "assistant", "thinking": "T"}]);
    assert_eq!(
        render("{% for m in messages %}{{ m | tojson }}{% endfor %}{{ messages[0].content }}", reasoned),
        "{\"thinking\": \"R\", \"role\": \"assistant\", \"content\": \"b\", \"reasoning\": \"R\", \"reasoning_content\": \"R\"}\
         {\"thinking\": \"T\", \"role\": \"assistant\", \"reasoning_content\": \"T\"}b"
    );
    assert_eq!(
        render("a\r\n{{ messages[0].content }}\rb", json!([{"role": "user", "content": "x"}])),
        "a\nx\nb"
    );
}

/// Whether parts are read is decided for each template and role, and never from a message whose text the template omits for
/// another reason.
#[test]
fn parts_are_tried_for_each_template_and_role() {
    let loops = "{% for m in messages %}{% if m.tool_calls %}call{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}\
                 {% endif %}{% endfor %}";
    let parts = json!([{"type": "text", "text": "Hello"}]);
    let message = Message::from_json(&json!({"role": "assistant", "content": parts})).unwrap();
    let calling = json!({"role": "assistant", "content": parts, "tool_calls": [{"name": "f"}]});
    let calling = Message::from_json(&calling).unwrap();
    let template = ChatTemplate::new("t.jinja".as_ref(), loops, Map::new()).unwrap();
    let render =
        |message: &Message| template.render(std::slice::from_ref(message), &RenderOptions::default());
    assert_eq!(render(&calling).unwrap(), "call");
    assert_eq!(render(&message).unwrap(), "Hello");

    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    std::fs::write(folder.path().join("additional_chat_templates/tool_use.jinja"), loops).unwrap();
    let template = ChatTemplate::from_folder(folder.path()).unwrap().unwrap();
    let tools = json!([{"name": "f"}]);
    for tools in [None, Some(&tools)] {
        let options = RenderOptions { tools, ..RenderOptions::default() };
        assert_eq!(template.render(std::slice::from_ref(&message), &options).unwrap(), "Hello");
    }
}

/// Messages of a template that writes calls as JSON; names of functions reach it unless it leaves calls out.
fn called(arguments: Value) -> Vec<Message> {
    let call = json!({"type": "function", "function": {"name": "find", "arguments": arguments}});
    let messages =
        [json!({"role": "user", "content": "hi"}), json!({"role": "assistant", "tool_calls": [call, call]})];
    messages.iter().map(|message| Message::from_json(message).unwrap()).collect()
}

#[test]
fn arguments_of_calls_are_objects_where_a_template_would_quote_them() {
    let options = RenderOptions::default();
    let write = |source: &str| {
        let template = ChatTemplate::new("t.jinja".as_ref(), source, Map::new()).unwrap();
        let messages = called(json!("{\"city\":\"B\u{e4}r\"}"));
        let messages = template.with_arguments(&messages, &options).unwrap();
        template.render(&messages, &options).unwrap()
    };
    let each = |arguments: &str| {
        format!(
            "{{% for c in messages[1].tool_calls %}}{{{{ c.function.name }}}}{{{{ {arguments} }}}};{{% endfor %}}"
        )
    };
    let object = "find{\"city\": \"B\u{e4}r\"};";
    assert_eq!(write(&each("c.function.arguments | tojson")), object.repeat(2));
    // Templates that write a string as it is have what transformers gives them.
    assert_eq!(write(&each("c.function.arguments")), "find{\"city\":\"B\u{e4}r\"};".repeat(2));
    assert_eq!(write(&each("'=' + c.function.arguments")), "find={\"city\":\"B\u{e4}r\"};".repeat(2));
    // Those that take objects alone have them, and the quoted text elsewhere changes nothing.
    let items = "c.function.arguments | items | first | last";
    assert_eq!(write(&each(items)), "findB\u{e4}r;".repeat(2));
    let mapping = "c.function.arguments.city if c.function.arguments is mapping else ''";
    assert_eq!(write(&each(mapping)), "findB\u{e4}r;".repeat(2));
    let beside = format!("\"{{\\\"city\\\":\\\"B\u{e4}r\\\"}}\" {}", each("c.function.arguments"));
    assert!(write(&beside).ends_with("find{\"city\":\"B\u{e4}r\"};"));
}

#[test]
fn what_a_template_omits_is_named() {
    let dropped = |source: &str, tools: Option<&Value>| {
        let template = ChatTemplate::new("t.jinja".as_ref(), source, Map::new()).unwrap();
        let options = RenderOptions { tools, ..RenderOptions::default() };
        template.dropped(&called(json!({})), &options).unwrap()
    };
    let texts = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let first = "{{ messages[0].content }}{{ messages[1].tool_calls[0].function.name }}";
    let all =
        "{{ messages[0].content }}{% for c in messages[1].tool_calls %}{{ c.function.name }}{% endfor %}";
    for source in [texts, first] {
        assert_eq!(dropped(source, None).as_deref(), Some("tool calls"), "{source}");
    }
    assert_eq!(dropped(all, None), None);
    let tools = json!([{"type": "function", "function": {"name": "find"}}]);
    assert_eq!(dropped(all, Some(&tools)).as_deref(), Some("tool definitions"));
    for shown in ["tools | tojson", "tools | string", "tools | tojson(ensure_ascii=true)"] {
        assert_eq!(dropped(&format!("{all}{{{{ {shown} }}}}"), Some(&tools)), None, "{shown}");
    }
}

/// As `continue_final_message` of transformers 5.23.
#[test]
fn a_last_answer_is_continued() {
    let chatml = std::fs::read_to_string(fixtures().join("chatml.jinja")).unwrap();
    let messages = [Message::new("user", "hi"), Message::new("assistant", "It is ")];
    let continued = |source: &str| {
        let template = ChatTemplate::new("t.jinja".as_ref(), source, Map::new()).unwrap();
        template.continuation(&messages, &RenderOptions::default())
    };
    assert!(
        continued(&chatml)
            .unwrap()
            .ends_with("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nIt is ")
    );
    // A template that trims texts has no space to continue after.
    let trimmed = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}";
    assert_eq!(continued(trimmed).unwrap(), "<user>hi</s><assistant>It is");
    let error = continued("{{ messages[0].content }}").unwrap_err().to_string();
    assert!(error.contains("omits the text of the last answer"), "{error}");
}
