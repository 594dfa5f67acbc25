//! What a request asks for, and what it uses.

use serde::{Deserialize, Serialize};

/// Of a request that does not say.
const MAX_TOKENS: u32 = 64;

/// The part of a chat completion request that matters here. What else it says is ignored.
#[derive(Debug, Deserialize)]
pub struct Chat {
    pub model: String,
    messages: Vec<Message>,
    max_tokens: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Message {
    content: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "answers name them like this")]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
}

impl Chat {
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let chat: Self = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if chat.messages.is_empty() {
            return Err("messages must not be empty".into());
        }
        if chat.max_tokens == Some(0) {
            return Err("max_tokens must be at least 1".into());
        }
        Ok(chat)
    }

    /// The length of the answer is drawn from the seed and the request alone, so that it is known when the
    /// request arrives and does not depend on what else arrives.
    pub fn usage(&self, seed: u64) -> Usage {
        let contents = self.messages.iter().map(|message| message.content.as_str());
        let prompt_tokens = contents.clone().map(count_tokens).sum();
        let most = self.max_tokens.unwrap_or(MAX_TOKENS);
        let bytes = contents.flat_map(str::bytes).chain(most.to_le_bytes());
        let mixed = bytes.fold(seed ^ 0xcbf2_9ce4_8422_2325, |mixed, byte| {
            (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let completion_tokens = u64::from(fastrand::Rng::with_seed(mixed).u32(1..=most));
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

/// A token for each four letters of a word or part of them, and one for each mark that is no space.
pub fn count_tokens(text: &str) -> u64 {
    let (mut tokens, mut letters) = (0, 0_u64);
    for character in text.chars() {
        if character.is_alphanumeric() {
            tokens += u64::from(letters.is_multiple_of(4));
            letters += 1;
        } else {
            tokens += u64::from(!character.is_whitespace());
            letters = 0;
        }
    }
    tokens
}
