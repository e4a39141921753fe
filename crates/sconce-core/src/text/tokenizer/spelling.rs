//! [`Spelling`]: how a vocabulary writes bytes as text.

use tokenizers::DecoderWrapper;

/// How a vocabulary writes bytes as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's: every byte has a printable character of its own (`Ġ` is a space).
    ByteLevel,
    /// SentencePiece's: `▁` is a space, `<0x0A>` a byte.
    SentencePiece,
    /// As it is.
    Plain,
}

impl Spelling {
    /// The spelling that `decoder` undoes.
    pub(super) fn of(decoder: &DecoderWrapper) -> Self {
        match decoder {
            DecoderWrapper::ByteLevel(_) => Self::ByteLevel,
            DecoderWrapper::Metaspace(_) | DecoderWrapper::ByteFallback(_) => Self::SentencePiece,
            DecoderWrapper::Sequence(parts) => {
                parts.get_decoders().iter().map(Self::of).find(|s| *s != Self::Plain).unwrap_or(Self::Plain)
            }
            _ => Self::Plain,
        }
    }

    /// The bytes that `token` stands for.
    pub(super) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::Plain => token.as_bytes().to_vec(),
            Self::ByteLevel => token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.into()),
            Self::SentencePiece => match byte_token(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
        }
    }
}

/// The byte that GPT-2's alphabet writes as `c`: printable Latin-1 stands for itself, and the other 68 bytes follow
/// in order from U+0100.
fn byte_of(c: char) -> Option<u8> {
    match c {
        '!'..='~' | '¡'..='¬' | '®'..='ÿ' => Some(c as u8),
        '\u{100}'..='\u{120}' => Some((c as u32 - 0x100) as u8),
        '\u{121}'..='\u{142}' => Some((c as u32 - 0x121) as u8 + 0x7f),
        '\u{143}' => Some(0xad),
        _ => None,
    }
}

/// The byte of a `<0xNN>` token.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}
