//! What sealing and opening cost, as `tapd bench-crypto` measures it: the protocol's own code on
//! one core, without any I/O.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::tapd::Variant;
use crate::command::{built_binary, run_command};

/// Of the outer headers and of what tapd adds: the rest of a full datagram is the frame that is
/// sealed (1424 bytes at an MTU of 1500).
const OVERHEAD: u32 = 76;

/// CPU seconds of sealing and opening 10^9 bytes in full frames, for each cipher that this tapd
/// knows. Takes about `span`, in whole seconds.
///
/// # Errors
/// This tapd has no `bench-crypto`, or tells something unknown.
pub fn measure(underlay_mtu: u32, span: Duration) -> Result<Vec<(Variant, f64)>> {
    let mut command = Command::new(built_binary("tapd")?);
    let size = (underlay_mtu - OVERHEAD).to_string();
    let seconds = span.as_secs().max(1).to_string();
    command.args(["bench-crypto", "--json", "--seconds", &seconds, "--size", &size]);
    parse(&run_command(&mut command)?)
}

fn parse(text: &str) -> Result<Vec<(Variant, f64)>> {
    let report: Value = serde_json::from_str(text).context("tapd bench-crypto is no JSON")?;
    let results = report["results"].as_array().context("tapd bench-crypto has no results")?;
    let mut costs = Vec::new();
    for variant in [Variant::Sealed, Variant::Aegis256, Variant::Aegis128L] {
        let Some(result) = results.iter().find(|r| r["cipher"] == variant.cipher()) else {
            continue;
        };
        let number = |value: &Value| value.as_f64().filter(|v| *v > 0.0);
        let nanos = number(&result["seal"]["ns"]).zip(number(&result["open"]["ns"]));
        let (seal, open) = nanos.context("tapd bench-crypto told no times")?;
        let size = number(&result["size"]).context("tapd bench-crypto told no size")?;
        // Nanoseconds for a byte are seconds for 10^9 of them.
        costs.push((variant, (seal + open) / size));
    }
    ensure!(!costs.is_empty(), "tapd bench-crypto knows none of the ciphers");
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_that_of_both_directions_for_a_byte() {
        let text = r#"{"results": [
            {"size": 1000, "cipher": "aes-256-gcm", "seal": {"ns": 400.0}, "open": {"ns": 600.0}},
            {"size": 1000, "cipher": "another", "seal": {"ns": 1.0}, "open": {"ns": 1.0}}
        ]}"#;
        assert_eq!(parse(text).unwrap(), [(Variant::Sealed, 1.0)]);
        assert!(parse("{}").is_err() && parse("{\"results\": []}").is_err());
    }
}
