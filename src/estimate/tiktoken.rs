//! Counting with the tokenizers of OpenAI's models.

use std::collections::HashSet;
use std::fmt;

use tiktoken_rs::{CoreBPE, bpe_for_model};

use super::{ByteBound, EstimateTokens, count};

/// Counts the tokens of a text as OpenAI's models do. Needs the feature `tiktoken`.
///
/// The vocabularies are part of the program: nothing is downloaded. The first use of one takes some tenths of a second and
/// some tens of megabytes, which are shared by all that count with it. What stands for a special token in a text,
/// `<|endoftext|>`, is counted as the text that it is.
///
/// ```
/// use quotalite::{EstimateTokens, Tiktoken};
///
/// let gpt = Tiktoken::for_model("gpt-4o")?;
/// assert_eq!(gpt.input_tokens("How many tokens is this text?"), 7);
/// # Ok::<(), quotalite::UnknownModel>(())
/// ```
#[derive(Clone, Copy)]
pub struct Tiktoken(&'static CoreBPE);

impl Tiktoken {
    /// The tokenizer of a model, which is named as in calls: `gpt-4o`, `gpt-4.1-mini`, `o3`.
    ///
    /// # Errors
    /// [`UnknownModel`] if this version of the crate does not know which tokenizer the model has.
    pub fn for_model(model: &str) -> Result<Self, UnknownModel> {
        bpe_for_model(model).map(Self).map_err(|_| UnknownModel {
            model: model.to_owned(),
        })
    }
}

impl EstimateTokens for Tiktoken {
    /// Where the tokenizer gives up, as it does on a megabyte of blanks, the text counts as one token for each byte.
    fn input_tokens(&self, text: &str) -> u64 {
        // The other ways to encode panic there.
        match self.0.encode(text, &HashSet::new()) {
            Ok((tokens, _)) => count(tokens.len()),
            Err(_) => ByteBound.input_tokens(text),
        }
    }
}

impl fmt::Debug for Tiktoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tiktoken").finish_non_exhaustive()
    }
}

/// Nobody knows here which tokenizer a model has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no tokenizer for the model `{model}`")]
#[non_exhaustive]
pub struct UnknownModel {
    /// The model.
    pub model: String,
}
