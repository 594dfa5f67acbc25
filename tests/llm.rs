//! Limits of calls to language models, and requests for them.
mod support;

use quotalite::llm::{self, LlmCall, LlmError, LlmLimits};
use quotalite::{
    Decision, Error, Estimator, Limiter, MAX_KEY_BYTES, OnConflict, Request, RequestError,
};
use support::in_both_stores;

fn define(limiter: &Limiter) {
    let gpt = LlmLimits::new("openai", "gpt-4o")
        .rpm(500)
        .tpm(30_000)
        .concurrency(8);
    limiter
        .define_all(gpt.limits().unwrap(), OnConflict::Fail)
        .unwrap();
    limiter.define(llm::daily_tokens(100_000)).unwrap();
}

fn available(limiter: &Limiter) -> [u64; 4] {
    let global = |resource: &str| format!("global:llm:openai:gpt-4o:{resource}");
    let keys = [
        global("rpm"),
        global("tpm"),
        global("concurrency"),
        "tenant:42:llm:daily_tokens".to_owned(),
    ];
    keys.map(|key| limiter.usage(&key).unwrap().available())
}

#[test]
fn limits_are_what_is_given_and_no_others() {
    let texts = |limits: &LlmLimits| -> Vec<String> {
        let limits = limits.limits().unwrap().into_iter();
        limits
            .map(|limit| limit.build().unwrap().to_string())
            .collect()
    };
    let limits = LlmLimits::new("openai", "gpt-4o");
    assert!(texts(&limits).is_empty());
    assert_eq!(
        texts(&limits.clone().tpm(30_000)),
        ["global:llm:openai:gpt-4o:tpm: 30000 tokens/min"]
    );
    assert_eq!(
        texts(&limits.concurrency(8).rpm(500).tpm(30_000)),
        [
            "global:llm:openai:gpt-4o:rpm: 500 requests/min",
            "global:llm:openai:gpt-4o:tpm: 30000 tokens/min",
            "global:llm:openai:gpt-4o:concurrency: 8 slots",
        ]
    );
    let each = llm::daily_tokens(5).build().unwrap();
    assert!(each.is_pattern());
    assert_eq!(each.to_string(), "tenant:*:llm:daily_tokens: 5 tokens/d");
    let one = llm::daily_tokens_of("42", 7).unwrap().build().unwrap();
    assert_eq!(one.to_string(), "tenant:42:llm:daily_tokens: 7 tokens/d");
}

#[test]
fn a_call_takes_what_it_is_not_told_to_leave_out() {
    let call = LlmCall::new("openai", "gpt-4o").tokens(1_800);
    let global = |resource: &str| format!("global:llm:openai:gpt-4o:{resource}");
    let takes = |call: &LlmCall| call.request().unwrap();
    assert_eq!(
        takes(&call.clone().tenant("42")),
        Request::new()
            .take(global("rpm"), 1)
            .take(global("tpm"), 1_800)
            .take("tenant:42:llm:daily_tokens", 1_800)
            .take(global("concurrency"), 1)
    );
    assert_eq!(
        takes(&call.clone().without_concurrency()),
        Request::new()
            .take(global("rpm"), 1)
            .take(global("tpm"), 1_800)
    );
    assert_eq!(
        takes(&call.clone().tenant("42").without_tpm().without_rpm()),
        Request::new()
            .take("tenant:42:llm:daily_tokens", 1_800)
            .take(global("concurrency"), 1)
    );
    assert_eq!(
        call.clone().tenant("42").used(7).unwrap(),
        [
            (global("tpm"), 7),
            ("tenant:42:llm:daily_tokens".to_owned(), 7)
        ]
    );
    let unsaid = LlmCall::new("openai", "gpt-4o");
    assert_eq!(unsaid.request(), Err(LlmError::NoTokens));
    let of_tenant = unsaid.clone().without_tpm().tenant("42");
    assert_eq!(of_tenant.request(), Err(LlmError::NoTokens));
    assert_eq!(
        takes(&unsaid.without_tpm()),
        Request::from([(global("rpm"), 1), (global("concurrency"), 1)])
    );
}

#[test]
fn names_that_make_no_key_are_refused() {
    let cases = [
        (llm::rpm_key("", "m"), "the name of a provider is not empty"),
        (llm::tpm_key("p", ""), "the name of a model is not empty"),
        (
            llm::daily_tokens_key(""),
            "the name of a tenant is not empty",
        ),
        (
            llm::tpm_key("ollama", "llama3:8b"),
            "the name of a model has no `:`, no `*` and no control characters, \"llama3:8b\" has ':' at byte 6",
        ),
        (
            llm::daily_tokens_key("é*"),
            "the name of a tenant has no `:`, no `*` and no control characters, \"é*\" has '*' at byte 2",
        ),
        (
            llm::concurrency_key("a\nb", "m"),
            "the name of a provider has no `:`, no `*` and no control characters, \"a\\nb\" has '\\n' at byte 1",
        ),
        (
            llm::rpm_key("p", &"m".repeat(300)),
            "a key has at most 256 bytes, `rpm` would have 317 with these names",
        ),
    ];
    for (key, text) in cases {
        assert_eq!(key.unwrap_err().to_string(), text);
    }
    let wrong = LlmCall::new("p", "m").tokens(1).tenant("a:llm");
    let error = LlmError::Character {
        what: "tenant",
        name: "a:llm".to_owned(),
        character: ':',
        offset: 1,
    };
    assert_eq!(wrong.request(), Err(error.clone()));
    assert_eq!(wrong.used(1), Err(error.clone()));
    assert_eq!(llm::daily_tokens_of("a:llm", 1).unwrap_err(), error);
    assert!(matches!(Error::from(error), Error::Llm(_)));
    let limits = LlmLimits::new("p", "*").concurrency(1);
    assert!(matches!(
        limits.limits(),
        Err(LlmError::Character { what: "model", .. })
    ));
}

#[test]
fn a_key_that_just_fits_can_be_defined() {
    in_both_stores(|limiter, _clock| {
        let tenant = "t".repeat(MAX_KEY_BYTES - "tenant::llm:daily_tokens".len());
        limiter
            .define(llm::daily_tokens_of(&tenant, 10).unwrap())
            .unwrap();
        let call = LlmCall::new("p", "m").tokens(3).tenant(&tenant);
        let call = call.without_rpm().without_tpm().without_concurrency();
        let granted = limiter.try_acquire(&call.request().unwrap()).unwrap();
        assert!(granted.is_granted());
        let longer = format!("{tenant}t");
        let error = llm::daily_tokens_key(&longer).unwrap_err();
        assert!(matches!(error, LlmError::TooLong { bytes: 257, .. }));
    });
}

#[test]
fn a_call_is_admitted_whole_or_not_at_all() {
    in_both_stores(|limiter, _clock| {
        define(limiter);
        let call = LlmCall::new("openai", "gpt-4o").tenant("42").tokens(1_800);
        let permit = limiter.acquire(&call.request().unwrap()).unwrap();
        assert_eq!(available(limiter), [499, 28_200, 7, 98_200]);
        let large = call.clone().tokens(28_201);
        let Decision::Denied(denial) = limiter.try_acquire(&large.request().unwrap()).unwrap()
        else {
            panic!("there is not as much left");
        };
        assert_eq!(denial.key(), "global:llm:openai:gpt-4o:tpm");
        assert_eq!(available(limiter), [499, 28_200, 7, 98_200]);
        permit.settle(call.used(620).unwrap()).unwrap();
        assert_eq!(available(limiter), [499, 29_380, 8, 99_380]);
        let booked = limiter.book(&call.request().unwrap()).unwrap_err();
        assert!(matches!(
            booked,
            Error::Request(RequestError::NotBookable { .. })
        ));
        let booking = limiter.book(&call.without_concurrency().request().unwrap());
        assert!(booking.is_ok());
        // A limit that nobody has defined is named.
        let other = LlmCall::new("openai", "o3").tokens(1);
        let error = limiter.acquire(&other.request().unwrap()).unwrap_err();
        assert!(
            matches!(&error, Error::UnknownLimit { key, .. } if key == "global:llm:openai:o3:rpm")
        );
    });
}

#[test]
fn an_estimator_settles_all_tokens_of_a_call() {
    in_both_stores(|limiter, _clock| {
        define(limiter);
        let key = llm::tpm_key("openai", "gpt-4o").unwrap();
        let estimator = Estimator::new(limiter, key.as_str());
        for _ in 0..10 {
            let estimate = estimator
                .estimate_texts(&["You are helpful.", "Why?"], 492)
                .unwrap();
            assert_eq!((estimate.raw(), estimate.amount()), (499, 499));
            let call = LlmCall::new("openai", "gpt-4o")
                .tenant("42")
                .tokens(estimate.amount());
            let permit = limiter.acquire(&call.request().unwrap()).unwrap();
            let used = call.used(100).unwrap();
            estimator.settle_amounts(&permit, &estimate, used).unwrap();
        }
        assert_eq!(available(limiter), [490, 29_000, 8, 99_000]);
        assert_eq!(estimator.estimate("", 499).unwrap().amount(), 100);
    });
}
