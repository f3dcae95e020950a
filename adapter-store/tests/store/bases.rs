//! Which base an upload is for, what makes it the same adapter, and what it is told.

use adapter_store::{Base, Upload};
use half::f16;
use model::{Linear, Site};
use safetensors::Dtype;
use serde_json::json;
use tensor::cpu::{LANES, Numbers};

use crate::build::*;

fn larger(id: &str) -> Base {
    let mut base = base(id);
    base.shape.hidden *= 2;
    base
}

#[tokio::test]
async fn the_base_is_the_one_asked_for_or_named_or_the_only_one_that_fits() {
    // Loaded, asked for, named in the configuration, expected: the base or a part of the refusal.
    type Row = (&'static [&'static str], Option<&'static str>, Option<&'static str>, &'static str);
    let table: [Row; 12] = [
        (&["org/a"], None, None, "org/a"),
        (&["org/a"], None, Some("org/a"), "org/a"),
        (&["org/a"], None, Some("/data/models/A/"), "org/a"),
        (&["org/a"], None, Some("somewhere/else"), "org/a"),
        (&["org/a", "org/b"], None, Some("org/b"), "org/b"),
        (&["org/a", "org/b"], None, Some("somewhere/else"), "fits org/a and org/b; say which with base"),
        (&["org/a", "org/b"], Some("org/b"), Some("somewhere/else"), "org/b"),
        (&["org/a", "org/b"], Some("org/a"), Some("org/b"), "names org/b as its base, which is loaded and fits"),
        (&["org/a", "larger"], None, None, "org/a"),
        (&["org/a", "larger"], Some("org/a"), Some("larger"), "org/a"),
        (&["org/a", "larger"], None, Some("larger"), "Was it trained on another size?"),
        (&["org/a"], Some("org/c"), None, "base model \"org/c\" is not loaded here; these are: org/a"),
    ];
    for (loaded, asked, named, expected) in table {
        let folder = tempfile::tempdir().unwrap();
        let bases = loaded.iter().map(|id| if *id == "larger" { larger(id) } else { base(id) }).collect();
        let store = open_with(folder.path(), bases).await;
        let mut built = Built::good(1);
        built.set("base_model_name_or_path", json!(named));
        let upload = Upload { base: asked.map(str::to_owned), ..upload("x", built.files()) };
        match store.check(upload) {
            Ok(checked) => {
                assert_eq!(checked.base, expected, "{loaded:?} {asked:?} {named:?}");
                let foreign = named.is_some_and(|name| !["org/a", "org/b", "/data/models/A/"].contains(&name));
                assert_eq!(!checked.report.warnings.is_empty(), foreign, "{named:?}: {:?}", checked.report.warnings);
            }
            Err(error) => assert!(error.to_string().contains(expected), "{loaded:?} {asked:?} {named:?}: {error}"),
        }
    }
}

type Change<'a> = (&'a str, &'a dyn Fn(&mut Built));

#[tokio::test]
async fn the_same_adapter_written_another_way_is_the_same_and_any_other_answer_is_another() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let plain = Built::good(1);
    let digest = |change: &dyn Fn(&mut Built)| {
        let mut built = plain.clone();
        change(&mut built);
        built.check(&store).unwrap().digest
    };
    let rename = |from: &'static str, to: &'static str| {
        move |built: &mut Built| {
            built.tensors.iter_mut().for_each(|tensor| tensor.name = tensor.name.replacen(from, to, 1));
        }
    };
    let known = digest(&|_| ());
    let same: [Change<'_>; 9] = [
        ("order", &|built| built.tensors.reverse()),
        ("the adapter's name within", &rename(".weight", ".default.weight")),
        ("no base_model prefix", &rename("base_model.model.", "")),
        ("a multimodal wrapper", &rename("base_model.model.model.", "base_model.model.model.language_model.")),
        ("an older one", &rename("base_model.model.model.", "base_model.model.language_model.model.")),
        ("training settings", &|built| built.set("lora_dropout", json!(0.3))),
        ("the scale in other numbers", &|built| {
            built.set("lora_alpha", json!(4));
            built.set("use_rslora", json!(true));
        }),
        ("a readme", &|built| built.others.push(file("README.md", "hello"))),
        ("the base's own tokenizer", &|built| built.others.push(file("added_tokens.json", r#"{"<s>":1}"#))),
    ];
    for (kind, change) in same {
        assert_eq!(digest(change), known, "{kind}");
    }
    let other: [Change<'_>; 5] = [
        ("a weight", &|built| built.tensors[0].bytes[2] ^= 1),
        ("the scale", &|built| built.set("lora_alpha", json!(9))),
        ("the scale of a module", &|built| built.set("alpha_pattern", json!({"up_proj": 9}))),
        ("a template", &|built| built.others.push(file("chat_template.jinja", "{{ messages }}"))),
        ("a module less", &|built| built.remove("up_proj")),
    ];
    for (kind, change) in other {
        assert_ne!(digest(change), known, "{kind}");
    }
    // 0.5 is the same number in every format.
    let mut half = plain.clone();
    let mut whole = plain.clone();
    for tensor in &mut whole.tensors {
        tensor.bytes = 0.5f32.to_le_bytes().repeat(tensor.bytes.len() / 4);
    }
    for tensor in &mut half.tensors {
        tensor.dtype = Dtype::F16;
        tensor.bytes = f16::from_f32(0.5).to_le_bytes().repeat(tensor.bytes.len() / 4);
    }
    assert_eq!(half.check(&store).unwrap().digest, whole.check(&store).unwrap().digest);
}

/// B (A x) of the first module of an f32 image with at most 16 ranks, at one output.
fn product(site: &model::image::SiteUpdate<'_>, x: &[f32], output: usize) -> f32 {
    let module = site.modules[0].unwrap();
    let (Numbers::F32(a), Numbers::F32(b)) = (site.a, module.b) else { panic!("an f32 image") };
    let shrunk = (0..module.ranks).map(|rank| x.iter().zip(a.chunks(site.ranks)).map(|(x, row)| x * row[rank]).sum());
    let panel = &b[output / LANES * LANES * module.ranks..];
    shrunk.zip(panel.chunks(LANES)).map(|(value, row): (f32, _)| value * row[output % LANES]).sum()
}

#[tokio::test]
async fn the_image_multiplies_as_the_formula_says() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_with(folder.path(), vec![Base { dtype: model::DType::F32, ..base("llama") }]).await;
    for (alpha, rslora, pattern) in [(8.0f32, false, None), (8.0, true, None), (8.0, false, Some(3.0f32))] {
        let mut built = Built::good(2);
        built.set("lora_alpha", json!(alpha));
        built.set("use_rslora", json!(rslora));
        if let Some(alpha) = pattern {
            built.set("alpha_pattern", json!({ r"layers\.0\.self_attn\.q_proj": alpha }));
        }
        let image = built.check(&store).unwrap().image;
        let site = image.site(0, Site::Qkv).unwrap();
        let (outputs, inputs) = shape().linear(Linear::Q);
        let x: Vec<f32> = (0..inputs).map(|input| (input % 7) as f32 - 3.0).collect();
        let found = product(&site, &x, outputs - 1);
        let rank = RANK as f32;
        let scale = pattern.unwrap_or(alpha) / if rslora { rank.sqrt() } else { rank };
        let expected = scale * rank * 0.02 * 0.02 * x.iter().sum::<f32>();
        assert!((found - expected).abs() <= expected.abs() * 1e-5, "{found} instead of {expected}");
        assert!(
            image.site(0, Site::Down).is_none() && image.site(1, Site::Qkv).is_none(),
            "modules left out are there"
        );
    }
}

#[tokio::test]
async fn what_has_no_effect_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (outputs, _) = shape().linear(Linear::Q);
    let mut built = Built::good(1);
    built.put(&format!("{}.lora_B.weight", module(0, Linear::Q)), &[outputs, RANK], 0.0);
    assert_eq!(built.check(&store).unwrap().report.warnings, ["lora_B is zero in 1 of 2 modules: they have no effect"]);
    built.remove("up_proj");
    built.set("target_modules", json!(["q_proj"]));
    let warnings = built.check(&store).unwrap().report.warnings;
    assert_eq!(warnings, ["lora_B is zero in every module: this adapter has no effect"]);
}

#[tokio::test]
async fn an_adapters_own_template_is_kept_wherever_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let config = |template: serde_json::Value| json!({ "chat_template": template }).to_string();
    let named = json!([{ "name": "tools", "template": "T" }, { "name": "default", "template": "D" }]);
    type Files<'a> = &'a [(&'a str, String)];
    let table: [(Files<'_>, Option<&str>); 5] = [
        (&[], None),
        (&[("tokenizer_config.json", config("C".into()))], Some("C")),
        (&[("tokenizer_config.json", config(named))], Some("D")),
        (&[("chat_template.jinja", "J".into()), ("tokenizer_config.json", config("C".into()))], Some("J")),
        (&[("tokenizer_config.json", "{}".into())], None),
    ];
    for (files, expected) in table {
        let mut built = Built::good(1);
        built.others = files.iter().map(|(name, text)| file(name, text.as_str())).collect();
        let version = push(&store, "x", built.files()).await;
        assert_eq!(store.chat_template(version.digest).await.unwrap().as_deref(), expected, "{files:?}");
    }
}
