//! Classes of folders and those of a model.

use super::*;

#[test]
fn labels_of_other_spellings_are_found() {
    let model = copy_files();
    edit(&model.path().join("config.json"), |config| {
        config["id2label"] = json!({"0": "Big Cat", "1": "dog", "2": "x"})
    });
    let data = tempfile::tempdir().unwrap();
    for class in ["big_cat", "Dog"] {
        fs::create_dir(data.path().join(class)).unwrap();
        draw("rows", 1).save(data.path().join(class).join("1.png")).unwrap();
    }
    let with = ["--model", s(model.path())];
    let picture = data.path().join("Dog/1.png");
    let said =
        json_of(&[&["predict"][..], &with, &["--image", s(&picture)]].concat())["rows"][0]["label"].clone();
    let got = json_of(&[&["evaluate"][..], &with, &["--task", "images", "--dev", s(data.path())]].concat());
    let expect = if said == "x" { 0.0 } else { 0.5 };
    assert_eq!((&got["rows"], &got["accuracy"]), (&json!(2), &json!(expect)), "{said}");
}

#[test]
fn folders_are_matched_by_name_then_by_number() {
    let (dir, model) = blocky();
    let picture = dir.path().join("data/class 1/1.png");
    let name = |names: &dyn Fn(usize) -> String| {
        edit(&model.join("config.json"), |config| {
            let labels = (0..11).map(|i| (i.to_string(), names(i).into()));
            config["id2label"] = Value::Object(labels.collect());
        });
        let said = json_of(&["predict", "--model", s(&model), "--image", s(&picture)]);
        said["rows"][0]["label"].as_str().unwrap().to_owned()
    };
    // Eleven folders, one of which has the picture.
    let accuracy = |folders: &dyn Fn(usize) -> String, holder: &str| {
        let data = tempfile::tempdir().unwrap();
        (0..11).for_each(|i| fs::create_dir(data.path().join(folders(i))).unwrap());
        fs::copy(&picture, data.path().join(holder).join("1.png")).unwrap();
        let command =
            ["evaluate", "--model", s(&model), "--task", "images", "--dev", s(data.path()), "--json"];
        let (output, said) = run(&command);
        let value: Value = serde_json::from_str(&output).unwrap();
        (value["accuracy"].as_f64().unwrap(), said)
    };
    let right = (1.0, String::new());
    // Whatever the model says, it is at another place among the sorted names.
    for shift in [2, 5] {
        let generic = |i: usize| format!("LABEL_{}", (i + shift) % 11);
        let said = name(&generic);
        assert_eq!(accuracy(&|i| format!("LABEL_{i}"), &said), right);
        let number = said.strip_prefix("LABEL_").unwrap();
        assert_eq!(accuracy(&|i| i.to_string(), number), right);
        let padded = format!("{:0>2}", number);
        assert_eq!(accuracy(&|i| format!("{i:02}"), &padded), right);
        // Without names and numbers the order remains, with a warning.
        let letter = |i: usize| char::from(b'a' + i as u8).to_string();
        let (got, said) = accuracy(&letter, &letter(number.parse().unwrap()));
        assert_eq!(got, 1.0);
        assert!(said.contains("are taken in the order of their names (a, b, c"), "{said}");
        let numbers = |i: usize| (i + shift).to_string();
        let data = tempfile::tempdir().unwrap();
        (0..11).for_each(|i| fs::create_dir(data.path().join(numbers(i))).unwrap());
        fs::copy(&picture, data.path().join(numbers(0)).join("1.png")).unwrap();
        let command = ["evaluate", "--model", s(&model), "--task", "images", "--dev", s(data.path())];
        fails(&command, "is not a class of the training data or the model");
    }
    name(&|i| if i == 7 { "b1".into() } else { format!("b{i}") });
    let data = tempfile::tempdir().unwrap();
    for class in ["b1", "b2"] {
        fs::create_dir(data.path().join(class)).unwrap();
        fs::copy(&picture, data.path().join(class).join("1.png")).unwrap();
    }
    let command = ["evaluate", "--model", s(&model), "--task", "images", "--dev", s(data.path())];
    fails(&command, "'b1' is the name of several labels of the model, 1 ('b1'), 7 ('b1')");
}

/// Classes of the data in another order than the head's; a step of no length changes nothing.
#[test]
fn a_head_is_reused_in_the_order_of_the_data() {
    let (model, data) = (copy_files(), tempfile::tempdir().unwrap());
    edit(&model.path().join("config.json"), |config| {
        config["id2label"] = json!({"0": "LABEL_2", "1": "LABEL_0", "2": "LABEL_1"});
    });
    for (class, kind) in CLASSES.iter().enumerate() {
        fs::create_dir(data.path().join(class.to_string())).unwrap();
        draw(kind, 1).save(data.path().join(class.to_string()).join("1.png")).unwrap();
    }
    let out = data.path().join(".run");
    let rows = ["--task", "images", "--train", s(data.path()), "--dev", s(data.path()), "-o", s(&out)];
    let head =
        ["finetune", "--model", s(model.path()), "--method", "full", "--max-steps", "1", "--lr", "1e-12"];
    run(&[&head[..], &rows].concat());
    let picture = data.path().join("0/1.png");
    let (before, after) = (logits(model.path(), None, &picture), logits(&out.join("model"), None, &picture));
    assert_near(&[before[1], before[2], before[0]], &after, 1e-5);
}
