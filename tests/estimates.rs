//! Estimates.

use std::sync::Arc;

use proptest::prelude::*;
use quotalite::{ByteBound, EstimateTokens, TextEstimate};

#[test]
fn texts_come_to_what_the_table_says() {
    let long = "x".repeat(4_000);
    let cases: &[(&str, u64, u64)] = &[
        ("", 0, 0),
        ("a", 2, 1),
        ("abcd", 2, 4),
        ("abcde", 3, 5),
        ("How many tokens is this text?", 10, 29),
        ("ééééé", 3, 10),
        ("日本語", 2, 9),
        ("\u{0}\u{10ffff}", 2, 5),
        (&long, 1_200, 4_000),
    ];
    for (text, estimate, bound) in cases {
        assert_eq!(TextEstimate.input_tokens(text), *estimate, "{text:?}");
        assert_eq!(ByteBound.input_tokens(text), *bound, "{text:?}");
    }
}

#[test]
fn a_call_is_its_texts_and_its_output() {
    let texts = ["abcd", "", "abcde"];
    assert_eq!(TextEstimate.call_tokens(&texts, 500), 505);
    assert_eq!(ByteBound.framed(4).call_tokens(&texts, 500), 521);
    assert_eq!(TextEstimate.call_tokens(&[], 0), 0);
    let most = ByteBound.framed(u64::MAX);
    assert_eq!(most.call_tokens(&texts, u64::MAX), u64::MAX);
    let any: [Box<dyn EstimateTokens>; 3] = [
        Box::new(TextEstimate),
        Box::new(Arc::new(ByteBound)),
        Box::new(&ByteBound),
    ];
    let all: Vec<u64> = any.iter().map(|any| any.call_tokens(&texts, 1)).collect();
    assert_eq!(all, [6, 10, 10]);
}

#[cfg(feature = "tiktoken")]
mod tiktoken {
    use quotalite::{Tiktoken, UnknownModel};

    use super::*;

    #[test]
    fn models_that_nobody_knows_are_told() {
        let error = Tiktoken::for_model("parrot-1").unwrap_err();
        assert!(matches!(&error, UnknownModel { model, .. } if model == "parrot-1"));
        assert_eq!(
            error.to_string(),
            "there is no tokenizer for the model `parrot-1`"
        );
    }

    #[test]
    fn what_looks_like_a_special_token_is_text() {
        let gpt = Tiktoken::for_model("gpt-4o").unwrap();
        assert!(gpt.input_tokens("<|endoftext|>") > 1);
    }

    /// The tokenizer's regular expression runs out of its stack.
    #[test]
    fn a_text_that_the_tokenizer_gives_up_on_counts_by_its_bytes() {
        let gpt = Tiktoken::for_model("gpt-4o").unwrap();
        let blanks = " ".repeat(2_000_000);
        assert_eq!(gpt.input_tokens(&blanks), 2_000_000);
    }

    proptest! {
        #[test]
        fn no_model_counts_more_tokens_than_bytes(text in any::<String>(), words in "[ -~\n]{0,200}") {
            for model in ["gpt-4o", "gpt-4", "text-davinci-003", "davinci"] {
                let model = Tiktoken::for_model(model).unwrap();
                for text in [&text, &words] {
                    prop_assert!(model.input_tokens(text) <= ByteBound.input_tokens(text), "{text:?}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn more_text_and_more_output_are_never_less(
        texts in prop::collection::vec(any::<String>(), 0..5),
        more in any::<String>(),
        (output, further) in any::<(u64, u64)>(),
        frame in any::<u64>(),
    ) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut longer = texts.clone();
        longer.push(&more);
        let joined = texts.concat();
        let bases: [Box<dyn EstimateTokens>; 3] =
            [Box::new(TextEstimate), Box::new(ByteBound), Box::new(TextEstimate.framed(frame))];
        for base in bases {
            let tokens = base.call_tokens(&texts, output);
            prop_assert!(tokens >= output);
            prop_assert!(base.call_tokens(&longer, output) >= tokens);
            prop_assert!(base.call_tokens(&texts, output.saturating_add(further)) >= tokens);
            let extended = format!("{joined}{more}");
            prop_assert!(base.input_tokens(&extended) >= base.input_tokens(&joined));
        }
    }
}
