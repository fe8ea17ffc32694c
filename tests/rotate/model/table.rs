//! `docs/models.md`: what is known of every folder of transformers with a RoPE and of every architecture of llama.cpp.

use std::collections::BTreeMap;
use std::fmt::Write;

use posenc::model::{architectures, model_types};
use serde_json::Value;

/// The type of the config of classes whose signature does not name it.
const OWN: &[(&str, &str)] = &[
    ("ClvpRotaryPositionalEmbedding", "clvp_encoder"),
    ("DeepseekOcr2VisionRotaryEmbedding", "deepseek_ocr2_encoder"),
    ("EsmFold2RotaryEmbedding", "esmfold2_atom_encoder"),
    ("EvollaSaProtRotaryEmbedding", "esm"),
    ("SeamlessM4TConformerRotaryPositionalEmbedding", "seamless_m4t"),
    ("Wav2Vec2BertRotaryPositionalEmbedding", "wav2vec2-bert"),
    ("Wav2Vec2ConformerRotaryPositionalEmbedding", "wav2vec2-conformer"),
];

/// Types around a model, whose own config is that of a part.
fn part(folder: &str, class: &str) -> Option<&'static str> {
    let inner = [
        "blt",
        "dia",
        "emu3",
        "glmasr",
        "muse_glimmer",
        "muse_spark",
        "nemotron3_diarization",
        "qwen2_5_omni",
        "qwen3_omni_moe",
        "t5gemma",
        "voxtral_realtime",
    ];
    let tower = class.contains("Vision") || class.contains("DiT");
    (inner.contains(&folder) && !tower).then_some("by the config of its parts")
}

#[test]
fn the_page_of_models_is_current() {
    let golden: Value = serde_json::from_str(include_str!("../../golden/rope_models_hf.json")).unwrap();
    let known: BTreeMap<_, _> = model_types().into_iter().map(|known| (known.name, known.positions)).collect();
    let mut cases: BTreeMap<&str, usize> = BTreeMap::new();
    for case in golden["cases"].as_array().unwrap() {
        // Classes without frequencies (GPT-J's hold sinusoids) compare nothing.
        if case["kinds"].as_object().unwrap().is_empty() {
            continue;
        }
        *cases.entry(case["config"]["model_type"].as_str().unwrap()).or_default() += 1;
    }
    let towers = super::towers::golden();
    for case in towers["cases"].as_array().unwrap() {
        let kind = case["as"].as_str().or(case["config"]["model_type"].as_str());
        *cases.entry(kind.unwrap()).or_default() += 1;
    }
    let mut page = include_str!("models_head.md").to_string();
    page.push_str("\n## Folders of transformers 5.24.0\n\n");
    page.push_str(
        "Behind a type stands how many of its configs were read by both, and agree in every layer that rotates.\n\n",
    );
    page.push_str("| folder | class | `model_type` | posenc |\n|---|---|---|---|\n");
    let folders = golden["folders"].as_array().unwrap();
    let mut open = Vec::new();
    for folder in folders {
        let name = folder["folder"].as_str().unwrap();
        let classes = folder["classes"].as_array().unwrap();
        for (class, kind) in classes.iter().zip(folder["types"].as_array().unwrap()) {
            let class = class.as_str().unwrap();
            // Of classes whose signature names no config, or the one around it.
            let own = OWN.iter().find(|(own, _)| *own == class).map(|&(_, kind)| kind);
            let kind = own.or(kind.as_str()).unwrap_or("");
            let answer = match (known.get(kind), cases.get(kind)) {
                (Some(positions), Some(count)) => format!("{positions}; configs: {count}"),
                (Some(positions), None) => positions.clone(),
                (None, _) => match part(name, class) {
                    Some(text) => text.into(),
                    None => {
                        open.push((name, class, kind));
                        continue;
                    }
                },
            };
            let _ = writeln!(page, "| {name} | {class} | {kind} | {answer} |");
        }
    }
    assert!(open.is_empty(), "not read: {open:?}");
    page.push_str("\n## Architectures of llama.cpp\n\n");
    page.push_str("By the graph in `src/models`, as the crate llama-cpp-sys-2 0.1.161 packs it.\n\n");
    page.push_str("| architecture | source | what takes position in |\n|---|---|---|\n");
    let architectures = architectures();
    for known in &architectures {
        let _ = writeln!(page, "| {} | {} | {} |", known.name, known.source, known.positions);
    }
    page.push_str("\n## Every `model_type`\n\n| what takes position in | `model_type` |\n|---|---|\n");
    let mut by_answer: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    known.iter().for_each(|(name, positions)| by_answer.entry(positions).or_default().push(name));
    for (positions, names) in by_answer {
        let _ = writeln!(page, "| {positions} | {} |", names.join(", "));
    }
    assert_eq!((folders.len(), architectures.len()), (205, 154));
    if std::env::var_os("POSENC_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/models.md"), &page).unwrap();
        return;
    }
    assert!(
        include_str!("../../../docs/models.md") == page,
        "docs/models.md is not what the loader knows: run this test with POSENC_BLESS=1"
    );
}

/// Every name is known once, and both functions read what they list.
#[test]
fn what_is_listed_is_read() {
    for known in [model_types(), architectures()] {
        let names: std::collections::BTreeSet<_> = known.iter().map(|known| known.name).collect();
        assert_eq!(names.len(), known.len());
        assert!(known.iter().all(|known| !known.positions.is_empty()));
    }
}
