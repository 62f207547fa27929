//! Addresses: what is taken is written back as something that is taken again and means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_model::{Domain, Mailbox};

fuzz_target!(|data: &str| {
    if let Ok(mailbox) = data.parse::<Mailbox>() {
        let again: Mailbox = mailbox.to_string().parse().expect("a mailbox is written as a mailbox");
        assert_eq!(mailbox, again);
        assert!(!mailbox.as_str().chars().any(char::is_control));
        let wire: Mailbox = mailbox.to_wire().parse().expect("the wire form is a mailbox");
        assert_eq!(mailbox.domain(), wire.domain());
    }
    if let Ok(domain) = data.parse::<Domain>() {
        let again: Domain = domain.to_string().parse().expect("a domain is written as a domain");
        assert_eq!(domain, again);
        assert!(domain.as_str().is_ascii() && domain.as_str().len() <= 255);
    }
});
