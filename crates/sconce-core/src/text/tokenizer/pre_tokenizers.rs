//! How byte-level vocabularies split text into words, by GGUF's names (`tokenizer.ggml.pre`).

use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

/// Llama 3's words; Qwen2's differ in that digits stand alone.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The words of GPT-4o, and of Phi-4 mini: where a capital follows a small letter another begins, and what is left out of "it's" goes with
/// the word before.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp does with a vocabulary whose kind its converter did not know, one split after the other.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// How a byte-level vocabulary treats text.
pub(super) struct Rules {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: PreTokenizerWrapper,
    /// A word that is in the vocabulary is one token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether a BOS is put before a text when the file does not say.
    pub(super) add_bos: bool,
}

/// The names that [`rules`] knows.
pub(super) const KNOWN: &str = "default, gpt-2, phi-2, olmo, smollm, starcoder, refact, command-r, llama-bpe, llama3, llama-v3, dbrx, smaug-bpe, glm4, chatglm-bpe, gpt-4o, qwen2, deepseek-r1-qwen";

/// The rules that go by `name`; None if there are none.
pub(super) fn rules(name: &str) -> tokenizers::Result<Option<Rules>> {
    // As GPT-2: its words are part of the byte-level step.
    let gpt2 = || ByteLevel::new(false, true, true).into();
    let (pre_tokenizer, normalizer) = match name {
        "gpt-2" | "phi-2" | "olmo" => (gpt2(), None),
        // Digits one by one, then as GPT-2. Granite's goes by the name of refact.
        "smollm" | "starcoder" | "refact" | "command-r" => (sequence(vec![Digits::new(true).into(), gpt2()]), None),
        // Phi-4 and OLMo 2 go by the name of dbrx.
        "llama-bpe" | "llama3" | "llama-v3" | "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => {
            (splits(&[LLAMA3])?, None)
        }
        "gpt-4o" => (splits(&[GPT4O])?, None),
        "qwen2" | "deepseek-r1-qwen" => (splits(&[QWEN2])?, Some(NFC.into())),
        "default" => (splits(&DEFAULT)?, None),
        _ => return Ok(None),
    };
    let llama3 = matches!(name, "llama-bpe" | "llama3" | "llama-v3");
    Ok(Some(Rules { normalizer, pre_tokenizer, ignore_merges: llama3, add_bos: llama3 }))
}

/// Splits by each pattern in turn, then bytes to GPT-2's alphabet.
fn splits(patterns: &[&str]) -> tokenizers::Result<PreTokenizerWrapper> {
    let mut steps = Vec::with_capacity(patterns.len() + 1);
    for pattern in patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
    }
    steps.push(ByteLevel::new(false, true, false).into());
    Ok(sequence(steps))
}

fn sequence(steps: Vec<PreTokenizerWrapper>) -> PreTokenizerWrapper {
    Sequence::new(steps).into()
}
