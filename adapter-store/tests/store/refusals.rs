//! Bad uploads: each is refused in words that name what is wrong, and leaves nothing behind.

use adapter_store::{AdapterStore, StoreError, UploadFile};
use model::Linear;
use safetensors::Dtype;
use serde_json::json;

use crate::build::*;

const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

async fn refuses(store: &AdapterStore, kind: &str, files: Vec<UploadFile>, named: &str) {
    let error = store.check(upload("x", files)).map(|checked| checked.report).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, StoreError::Refused(_) | StoreError::TooLarge(_)), "{kind}: {said}");
    assert!(
        said.contains(named) && said.ends_with("Nothing was stored."),
        "{kind}: {said:?} says nothing of {named:?}"
    );
}

#[tokio::test]
async fn kinds_that_peft_writes_and_that_would_be_answered_wrongly_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let named = [
        ("bias", "bias"),
        ("dora", "DoRA"),
        ("embedding", "embedding"),
        ("fan-in-fan-out", "fan_in_fan_out"),
        ("ia3", "IA3"),
        ("lm-head", "lm_head"),
        ("lora-bias", "lora_B"),
        ("modules-to-save", "modules_to_save"),
        ("pickle", "pickle"),
        ("pissa", "pissa"),
        ("trainable-tokens", "trainable_token_indices"),
    ];
    for (kind, name) in named {
        refuses(&store, kind, read_folder(&fixtures().join("refused").join(kind)), name).await;
    }
    assert_eq!(blobs(folder.path()), 0);
    assert!(store.list(&account("local"), "", 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn every_bad_tensor_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let shape = shape();
    let (hidden, layers) = (shape.hidden, shape.layers);
    let wide = hidden * 2;
    let q = |side: &str| format!("layers.0.self_attn.q_proj.{side}");
    type Spoil = Box<dyn Fn(&mut Built)>;
    let put = |name: &str, shape: &[usize], value: f32| -> Spoil {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        Box::new(move |built| built.put(&name, &shape, value))
    };
    let nan_at_five: Spoil = Box::new(|built| {
        built.remove("q_proj.lora_A");
        built.put(A, &[RANK, self::shape().hidden], 0.5);
        built.tensors.last_mut().unwrap().bytes[20..24].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let integers: Spoil = Box::new(|built| built.tensors[0].dtype = Dtype::I32);
    let table: Vec<(&str, Spoil, String)> = vec![
        (
            "another size",
            put(A, &[RANK, wide], 0.1),
            format!(
                "{} is [{RANK}, {wide}]; llama needs [{RANK}, {hidden}]. Was it trained on another size?",
                q("lora_A")
            ),
        ),
        (
            "another rank",
            put(A, &[RANK + 1, hidden], 0.1),
            format!("{} has rank 5; adapter_config.json says 4", q("lora_A")),
        ),
        ("one dimension", put(A, &[RANK * hidden], 0.1), format!("{} has 1 dimensions", q("lora_A"))),
        ("not a number", nan_at_five, format!("{} holds NaN at index 5", q("lora_A"))),
        ("infinite", put(A, &[RANK, hidden], f32::INFINITY), format!("{} holds inf at index 0", q("lora_A"))),
        ("integers", integers, format!("{} has dtype I32", q("lora_A"))),
        ("no B", Box::new(|built| built.remove("q_proj.lora_B")), "q_proj has lora_A and no lora_B".into()),
        ("no A", Box::new(|built| built.remove("q_proj.lora_A")), "q_proj has lora_B and no lora_A".into()),
        ("nothing", Box::new(|built| built.tensors.clear()), "no tensors".into()),
        (
            "the same module twice",
            put(&A.replace("lora_A", "lora_A.default"), &[RANK, hidden], 0.1),
            format!("{} is there twice", q("lora_A")),
        ),
        (
            "a layer too many",
            put(&A.replace("layers.0", &format!("layers.{layers}")), &[RANK, hidden], 0.1),
            format!("llama has {layers} layers. Was it trained on another size? Nothing"),
        ),
        (
            "an unknown module",
            put(&A.replace("q_proj", "qkv_proj"), &[RANK, hidden], 0.1),
            "self_attn.qkv_proj is not a module that can be adapted here; these are: self_attn.q_proj".into(),
        ),
        (
            "another tower",
            put(&A.replace("model.layers", "vision_tower.layers"), &[RANK, hidden], 0.1),
            "text model".into(),
        ),
        ("DoRA", put(&A.replace("lora_A", "lora_magnitude_vector"), &[hidden], 0.1), "DoRA".into()),
        ("an embedding", put("base_model.model.model.embed_tokens.lora_embedding_A", &[4, 9], 0.1), "embedding".into()),
        ("MLX", put("model.layers.0.self_attn.q_proj.lora_a", &[hidden, RANK], 0.1), "MLX".into()),
        ("an image model", put("lora_unet_down.lora_down.weight", &[RANK, hidden], 0.1), "image model".into()),
        (
            "overflow",
            Box::new(|built| {
                built.set("lora_alpha", json!(1e38));
                let outputs = self::shape().linear(Linear::Q).0;
                built.put(&A.replace("lora_A", "lora_B"), &[outputs, RANK], 1e38);
            }),
            "overflows".into(),
        ),
    ];
    for (kind, spoil, named) in table {
        let mut built = Built::good(1);
        spoil(&mut built);
        refuses(&store, kind, built.files(), &named).await;
    }
    assert_eq!(blobs(folder.path()), 0);
}

#[tokio::test]
async fn every_bad_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let good = Built::good(1);
    let (config, weights) = (good.files()[0].clone(), good.files()[1].clone());
    let vocabulary = shape().vocabulary;
    let beside = |name: &str, text: String| vec![config.clone(), weights.clone(), file(name, text)];
    let claims_more = {
        // A header that promises far more than the file holds must not be believed.
        let header = br#"{"a.lora_A.weight":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,18446744073709551615]}}"#;
        [&(header.len() as u64).to_le_bytes()[..], header].concat()
    };
    let table = [
        ("no configuration", vec![weights.clone()], "adapter_config.json is missing"),
        ("no weights", vec![config.clone()], "adapter_model.safetensors is missing"),
        ("a pickle", vec![config.clone(), file("adapter_model.bin", "x")], "adapter_model.bin is a pickle"),
        ("MLX", vec![config.clone(), file("adapters.safetensors", "x")], "MLX"),
        ("an image model", vec![config.clone(), file("pytorch_lora_weights.safetensors", "x")], "image model"),
        ("not JSON", vec![file("adapter_config.json", "{"), weights.clone()], "adapter_config.json"),
        ("not safetensors", vec![config.clone(), file("adapter_model.safetensors", "x")], "cut off"),
        (
            "a header without end",
            vec![config.clone(), file("adapter_model.safetensors", vec![0xff; 64])],
            "not a safetensors file",
        ),
        (
            "sizes that overflow",
            vec![config.clone(), file("adapter_model.safetensors", claims_more)],
            "adapter_model.safetensors",
        ),
        (
            "the same file twice",
            vec![config.clone(), weights.clone(), config.clone()],
            "adapter_config.json is there twice",
        ),
        (
            "two adapters",
            vec![file("a/adapter_config.json", "{}"), file("b/adapter_config.json", "{}")],
            "a/ and b/ are two adapters",
        ),
        (
            "tokens that the base has not",
            beside("added_tokens.json", json!({ "<new>": vocabulary }).to_string()),
            "added_tokens.json has a token with id",
        ),
        (
            "a larger tokenizer",
            beside("tokenizer.json", json!({ "model": { "vocab": { "a": 0, "b": vocabulary } } }).to_string()),
            "tokenizer.json has a token with id",
        ),
        (
            "a larger unigram tokenizer",
            beside("tokenizer.json", json!({ "model": { "vocab": vec![("a", -1.0); vocabulary + 1] } }).to_string()),
            "tokenizer.json has a token with id",
        ),
        (
            "a token more in its configuration",
            beside(
                "tokenizer_config.json",
                json!({ "added_tokens_decoder": { vocabulary.to_string(): {} } }).to_string(),
            ),
            "tokenizer_config.json has a token with id",
        ),
        ("a template without end", beside("chat_template.jinja", "x".repeat(1 << 20)), "chat template"),
    ];
    for (kind, files, named) in table {
        refuses(&store, kind, files, named).await;
    }
    assert_eq!(blobs(folder.path()), 0);
}

#[tokio::test]
async fn an_adapter_without_effect_is_told_why() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let warnings = |built: &Built| built.check(&store).unwrap().report.warnings;
    let good = Built::good(1);
    assert_eq!(warnings(&good), [""; 0]);
    let mut scaled = good.clone();
    scaled.set("lora_alpha", json!(0));
    let cause = "the scale (lora_alpha or alpha_pattern) makes lora_B zero";
    assert_eq!(warnings(&scaled), [format!("{cause} in every module: this adapter has no effect")]);
    let mut partly = good.clone();
    partly.set("alpha_pattern", json!({ "q_proj": 0 }));
    assert_eq!(warnings(&partly), [format!("{cause} in 1 of 2 modules: they have no effect")]);
    let mut zeros = good;
    for linear in [Linear::Q, Linear::Up] {
        zeros.put(&format!("{}.lora_B.weight", module(0, linear)), &[shape().linear(linear).0, RANK], 0.0);
    }
    assert_eq!(warnings(&zeros), ["lora_B is zero in every module: this adapter has no effect"]);
}

#[tokio::test]
async fn random_damage_is_refused_or_harmless_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let whole = written_by_peft("attention");
    let seed = std::process::id() as u64;
    println!("seed {seed}");
    let mut state = seed;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    for _ in 0..400 {
        let mut damaged = whole.clone();
        let file = random(damaged.len());
        let mut bytes = damaged[file].bytes.to_vec();
        // Damage in the header and the configuration tells more than damage in the weights.
        let reach = bytes.len().min(2000);
        for _ in 0..1 + random(4) {
            let at = random(reach);
            bytes[at] = random(256) as u8;
        }
        if random(4) == 0 {
            bytes.truncate(random(bytes.len()));
        }
        damaged[file].bytes = bytes.into();
        if let Err(error) = store.check(upload("x", damaged)) {
            assert!(matches!(error, StoreError::Refused(_) | StoreError::TooLarge(_)), "{error}");
        }
    }
    assert_eq!(blobs(folder.path()), 0);
}
