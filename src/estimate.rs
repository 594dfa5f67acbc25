//! How many tokens a call will take, before anybody has counted them.

mod estimator;
mod learned;
#[cfg(feature = "tiktoken")]
mod tiktoken;

use std::sync::Arc;

pub use self::estimator::{Estimate, Estimator};
pub use self::learned::EstimateRatio;
pub(crate) use self::learned::{Learned, Lesson};
#[cfg(feature = "tiktoken")]
pub use self::tiktoken::{Tiktoken, UnknownModel};

/// Says how many tokens a call will take, so that so many can be asked for before it is made.
///
/// Whoever implements it says what one text comes to, as part of what is sent; a call has several of them, its messages,
/// and an answer. Every sum ends at [`u64::MAX`] instead of overflowing, and no text is refused.
///
/// ```
/// use quotalite::EstimateTokens;
///
/// /// A model that counts words.
/// struct Words;
///
/// impl EstimateTokens for Words {
///     fn input_tokens(&self, text: &str) -> u64 {
///         text.split_whitespace().count().try_into().unwrap_or(u64::MAX)
///     }
/// }
///
/// assert_eq!(Words.call_tokens(&["You are helpful.", "Hello, how are you?"], 100), 107);
/// let any: Box<dyn EstimateTokens> = Box::new(Words.framed(4));
/// assert_eq!(any.call_tokens(&["You are helpful.", "Hello, how are you?"], 100), 115);
/// ```
pub trait EstimateTokens {
    /// How many tokens this text comes to, as part of what is sent.
    fn input_tokens(&self, text: &str) -> u64;

    /// How many tokens a call takes that sends these texts and may be answered with `output` tokens: the `max_tokens` of the
    /// call.
    fn call_tokens(&self, texts: &[&str], output: u64) -> u64 {
        texts.iter().fold(output, |sum, text| {
            sum.saturating_add(self.input_tokens(text))
        })
    }

    /// Whether no text ever comes to more. An [`Estimator`] asks for as much as a bound says, whatever calls have used before,
    /// and learns nothing from it.
    fn is_bound(&self) -> bool {
        false
    }

    /// The same, and so many tokens more for each text: what goes around a message, its role and its separators. For chats
    /// of OpenAI's models that is 3 or 4.
    fn framed(self, tokens: u64) -> Framed<Self>
    where
        Self: Sized,
    {
        Framed { base: self, tokens }
    }
}

impl<E: EstimateTokens + ?Sized> EstimateTokens for &E {
    fn input_tokens(&self, text: &str) -> u64 {
        (**self).input_tokens(text)
    }

    fn call_tokens(&self, texts: &[&str], output: u64) -> u64 {
        (**self).call_tokens(texts, output)
    }

    fn is_bound(&self) -> bool {
        (**self).is_bound()
    }
}

impl<E: EstimateTokens + ?Sized> EstimateTokens for Box<E> {
    fn input_tokens(&self, text: &str) -> u64 {
        (**self).input_tokens(text)
    }

    fn call_tokens(&self, texts: &[&str], output: u64) -> u64 {
        (**self).call_tokens(texts, output)
    }

    fn is_bound(&self) -> bool {
        (**self).is_bound()
    }
}

impl<E: EstimateTokens + ?Sized> EstimateTokens for Arc<E> {
    fn input_tokens(&self, text: &str) -> u64 {
        (**self).input_tokens(text)
    }

    fn call_tokens(&self, texts: &[&str], output: u64) -> u64 {
        (**self).call_tokens(texts, output)
    }

    fn is_bound(&self) -> bool {
        (**self).is_bound()
    }
}

/// A quarter of the characters, and a fifth more, each rounded up: what English prose comes to with the tokenizers that are
/// in use, with something to spare. It needs no tokenizer and reads the text once.
///
/// Other texts come to other numbers, source code and most other languages to more. An [`Estimator`] learns by how much.
///
/// ```
/// use quotalite::{EstimateTokens, TextEstimate};
///
/// assert_eq!(TextEstimate.input_tokens("How many tokens is this text?"), 10);
/// assert_eq!(TextEstimate.call_tokens(&["How many tokens is this text?"], 500), 510);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextEstimate;

impl EstimateTokens for TextEstimate {
    fn input_tokens(&self, text: &str) -> u64 {
        let quarter = count(text.chars().count()).div_ceil(4);
        quarter.saturating_add(quarter.div_ceil(5))
    }
}

/// One token for each byte of UTF-8: no tokenizer that works on bytes makes more of a text, whatever it says.
///
/// It bounds the texts themselves. What a server puts around them it does not know: [`framed`](EstimateTokens::framed) adds
/// that. An [`Estimator`] leaves it [as it is](EstimateTokens::is_bound).
///
/// ```
/// use quotalite::{ByteBound, EstimateTokens};
///
/// assert_eq!(ByteBound.input_tokens("é"), 2);
/// assert_eq!(ByteBound.framed(4).call_tokens(&["Hi", "é"], 100), 112);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteBound;

impl EstimateTokens for ByteBound {
    fn input_tokens(&self, text: &str) -> u64 {
        count(text.len())
    }

    fn is_bound(&self) -> bool {
        true
    }
}

/// What another estimate says, and the same number more for each text: see [`EstimateTokens::framed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framed<E> {
    base: E,
    tokens: u64,
}

impl<E: EstimateTokens> EstimateTokens for Framed<E> {
    fn input_tokens(&self, text: &str) -> u64 {
        self.base.input_tokens(text).saturating_add(self.tokens)
    }

    fn is_bound(&self) -> bool {
        self.base.is_bound()
    }
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
