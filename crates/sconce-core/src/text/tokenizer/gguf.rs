//! A [`Tokenizer`] from a GGUF's metadata: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper};

use super::{Parts, Tokenizer, pre_tokenizers};
use crate::error::{Error, Result};
use crate::weights::GgufMetadata;

/// Longer than any token: what joins one takes time by the square of its length.
const MAX_TOKEN_BYTES: usize = 4096;
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";

/// What a token is, as `tokenizer.ggml.token_type` numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

pub(super) fn from_gguf(path: &Path, metadata: &GgufMetadata) -> Result<Tokenizer> {
    let key = "tokenizer.ggml.model";
    let model = metadata.string(key)?.ok_or_else(|| missing(path, key))?;
    let vocabulary = Vocabulary::read(path, metadata)?;
    match model {
        "gpt2" => byte_level(&vocabulary),
        "llama" => sentence_piece(&vocabulary),
        other => Err(bad(path, key, &format!("{other:?} is not supported; expected \"gpt2\" or \"llama\""))),
    }
}

fn missing(path: &Path, key: &str) -> Error {
    Error::file(path, format!("metadata key {key} is missing"))
}

fn bad(path: &Path, key: &str, what: &str) -> Error {
    Error::file(path, format!("metadata key {key}: {what}"))
}

/// What both kinds of vocabulary have.
struct Vocabulary<'a> {
    path: &'a Path,
    metadata: &'a GgufMetadata,
    tokens: &'a [String],
    kinds: Vec<Kind>,
    ids: HashMap<&'a str, u32>,
}

impl<'a> Vocabulary<'a> {
    fn read(path: &'a Path, metadata: &'a GgufMetadata) -> Result<Self> {
        let tokens = metadata.strings(TOKENS)?.ok_or_else(|| missing(path, TOKENS))?;
        if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
            return Err(bad(path, TOKENS, &format!("{} tokens", tokens.len())));
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in (0..).zip(tokens) {
            if token.len() > MAX_TOKEN_BYTES {
                let message = format!("token {id} has {} bytes, more than {MAX_TOKEN_BYTES}", token.len());
                return Err(bad(path, TOKENS, &message));
            }
            if let Some(first) = ids.insert(token.as_str(), id) {
                return Err(bad(path, TOKENS, &format!("{token:?} is both token {first} and token {id}")));
            }
        }
        let kinds = match metadata.ints(TOKEN_TYPE)? {
            None => vec![Kind::Normal; tokens.len()],
            Some(types) => {
                same_length(path, TOKEN_TYPE, types.len(), tokens.len())?;
                types.iter().enumerate().map(|(id, &number)| kind(path, id, number)).collect::<Result<_>>()?
            }
        };
        Ok(Self { path, metadata, tokens, kinds, ids })
    }

    /// Tokens with their ids and kinds.
    fn iter(&self) -> impl Iterator<Item = (u32, &'a str, Kind)> {
        (0..).zip(self.tokens).zip(&self.kinds).map(|((id, token), &kind)| (id, token.as_str(), kind))
    }

    /// The model that joins tokens by `merges`. Control tokens stay out of it, so that no plain text becomes one.
    fn bpe(&self, merges: Merges) -> BpeBuilder {
        let ordinary = self.iter().filter(|(_, _, kind)| *kind != Kind::Control);
        let vocab: Vocab = ordinary.map(|(id, token, _)| (token.to_owned(), id)).collect();
        BPE::builder().vocab_and_merges(vocab, merges)
    }

    /// A token that has a role. `default`: the role's id where the file does not give one.
    fn role(&self, key: &str, default: Option<u32>) -> Result<Option<u32>> {
        let Some(id) = self.metadata.uint(key)? else {
            return Ok(default.filter(|&id| (id as usize) < self.tokens.len()));
        };
        if id >= self.tokens.len() {
            return Err(bad(self.path, key, &format!("token {id} of a vocabulary of {}", self.tokens.len())));
        }
        Ok(Some(id as u32))
    }

    /// The tokenizer around `inner`, which has everything but added tokens.
    fn finish(
        &self,
        inner: tokenizers::Tokenizer,
        added: Vec<(u32, AddedToken)>,
        defaults: Defaults,
    ) -> Result<Tokenizer> {
        let [bos, eos, unk] = defaults.ids;
        let bos = self.role("tokenizer.ggml.bos_token_id", bos)?;
        let eos = self.role("tokenizer.ggml.eos_token_id", eos)?;
        let roles = [
            ("bos_token", bos),
            ("eos_token", eos),
            ("unk_token", self.role("tokenizer.ggml.unknown_token_id", unk)?),
            ("pad_token", self.role("tokenizer.ggml.padding_token_id", None)?),
        ];
        let name = |(name, id): (&str, Option<u32>)| Some((name.to_owned(), self.tokens[id? as usize].clone()));
        let named: BTreeMap<String, String> = roles.into_iter().filter_map(name).collect();
        let end_ids = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
        let end_ids = end_ids.into_iter().filter_map(|key| self.role(key, None).transpose()).collect::<Result<_>>()?;
        let adds = |key, id: Option<u32>, default| -> Result<Vec<u32>> {
            let wanted = self.metadata.bool(key)?;
            match id {
                Some(id) if wanted.unwrap_or(default) => Ok(vec![id]),
                None if wanted == Some(true) => {
                    Err(bad(self.path, key, "it is true, but the file names no such token"))
                }
                _ => Ok(Vec::new()),
            }
        };
        let prefix = adds("tokenizer.ggml.add_bos_token", bos, defaults.add_bos)?;
        let suffix = adds("tokenizer.ggml.add_eos_token", eos, false)?;
        Tokenizer::from_parts(Parts { inner, added, named, prefix, suffix, end_ids }, self.path)
    }
}

/// What holds where the file does not say.
struct Defaults {
    /// BOS, EOS, unknown.
    ids: [Option<u32>; 3],
    add_bos: bool,
}

fn same_length(path: &Path, key: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(bad(path, key, &format!("{found} entries, but {TOKENS} has {expected}")))
}

fn kind(path: &Path, id: usize, number: i64) -> Result<Kind> {
    Ok(match number {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        other => return Err(bad(path, TOKEN_TYPE, &format!("token {id} has the unknown type {other}"))),
    })
}

fn byte_level(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer> {
    let Vocabulary { path, metadata, .. } = *vocabulary;
    let name = metadata.string(PRE)?.unwrap_or("default");
    let rules = pre_tokenizers::rules(name).map_err(|e| bad(path, PRE, &format!("{name:?}: {e}")))?;
    let rules =
        rules.ok_or_else(|| bad(path, PRE, &format!("{name:?} is not known; known: {}", pre_tokenizers::KNOWN)))?;
    let merges = metadata.strings(MERGES)?.ok_or_else(|| missing(path, MERGES))?;
    let merges = merges.iter().enumerate().map(|(i, merge)| {
        // A byte-level spelling has no space of its own.
        let (left, right) = merge.split_once(' ').ok_or_else(|| bad(path, MERGES, &format!("entry {i}: {merge:?}")))?;
        let known =
            |token: &str| vocabulary.ids.get(token).is_some_and(|&id| vocabulary.kinds[id as usize] != Kind::Control);
        match [left, right, &[left, right].concat()].into_iter().find(|token| !known(token)) {
            None => Ok((left.to_owned(), right.to_owned())),
            Some(token) => Err(bad(path, MERGES, &format!("entry {i}: {merge:?}: {token:?} is no ordinary token"))),
        }
    });
    let merges: Vec<_> = merges.collect::<Result<_>>()?;
    let model = vocabulary.bpe(merges).ignore_merges(rules.ignore_merges).build();
    let mut inner = tokenizers::Tokenizer::new(model.map_err(|e| bad(path, MERGES, &e.to_string()))?);
    inner.with_normalizer(rules.normalizer).map_err(|e| bad(path, PRE, &e.to_string()))?;
    inner.with_pre_tokenizer(Some(rules.pre_tokenizer));
    inner.with_decoder(Some(ByteLevel::default()));
    let added = vocabulary.iter().filter_map(|(id, token, kind)| match kind {
        Kind::Control | Kind::Unknown => Some((id, AddedToken::from(token, true))),
        Kind::UserDefined => Some((id, AddedToken::from(token, false).normalized(false))),
        _ => None,
    });
    vocabulary.finish(inner, added.collect(), Defaults { ids: [None; 3], add_bos: rules.add_bos })
}

fn sentence_piece(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer> {
    let Vocabulary { path, metadata, tokens, .. } = *vocabulary;
    let scores = metadata.floats(SCORES)?.ok_or_else(|| missing(path, SCORES))?;
    same_length(path, SCORES, scores.len(), tokens.len())?;
    let add_space_prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unk_key = "tokenizer.ggml.unknown_token_id";
    let unk = vocabulary.role(unk_key, Some(0))?.map(|id| tokens[id as usize].clone()).unwrap_or_default();

    let bpe = vocabulary.bpe(merges_from_scores(vocabulary, scores));
    let model = bpe.byte_fallback(true).fuse_unk(true).unk_token(unk).build();
    let mut inner = tokenizers::Tokenizer::new(model.map_err(|e| bad(path, TOKENS, &e.to_string()))?);
    let replace = |from: &str, to: &str| Replace::new(from, to).map_err(|e| Error::internal(format!("tokenizer: {e}")));
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders: Vec<DecoderWrapper> =
        vec![replace("▁", " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if add_space_prefix {
        normalizers.push(Prepend::new("▁".to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(replace(" ", "▁")?.into());
    inner
        .with_normalizer(Some(Normalizers::new(normalizers)))
        .map_err(|e| Error::internal(format!("tokenizer: {e}")))?;
    inner.with_decoder(Some(Decoders::new(decoders)));

    let phi3 = metadata.string("general.architecture")? == Some("phi3");
    let added = vocabulary.iter().filter_map(|(id, token, kind)| {
        let added = match kind {
            // Phi-3's turn marks swallow the white space after them, which GGUF has no field for.
            Kind::Control => AddedToken::from(token, true).rstrip(phi3 && !matches!(token, "<s>" | "<|endoftext|>")),
            Kind::Unknown => AddedToken::from(token, true),
            // Runs of spaces are spelled with ▁, so they are there to be found only once the text is normalized.
            Kind::UserDefined => AddedToken::from(token, false).normalized(!add_space_prefix && token.contains('▁')),
            _ => return None,
        };
        Some((id, added))
    });
    vocabulary.finish(inner, added.collect(), Defaults { ids: [Some(1), Some(2), Some(0)], add_bos: true })
}

/// SentencePiece joins the two neighbours whose union has the highest score. As merges: every way to split an
/// ordinary token into two others, best union first; among equals the longer left part, then the longer right part
/// first, as transformers' converter orders them.
fn merges_from_scores(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Merges {
    let normal = |piece: &str| {
        let id = *vocabulary.ids.get(piece)?;
        (vocabulary.kinds[id as usize] == Kind::Normal).then_some(id)
    };
    let mut merges = Vec::new();
    for (id, token, _) in vocabulary.iter().filter(|(_, _, kind)| *kind == Kind::Normal) {
        let from = merges.len();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(left_id), Some(right_id)) = (normal(left), normal(right)) {
                merges.push((scores[id as usize], left, right, (left_id, right_id)));
            }
        }
        merges[from..].sort_by_key(|(_, _, _, ids)| *ids);
    }
    let chars = |s: &str| s.chars().count();
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (chars(b.1), chars(b.2)).cmp(&(chars(a.1), chars(a.2)))));
    merges.into_iter().map(|(_, left, right, _)| (left.to_owned(), right.to_owned())).collect()
}
