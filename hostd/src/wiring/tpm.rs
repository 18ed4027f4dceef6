//! The machine's TPM. It is opened for each quote: between quotes it is free for whoever else uses it.

use std::path::Path;
use std::sync::Arc;

use crate::ports::QuotePort;

/// The TPM that tpm2-tss calls `tcti`; the error is a sentence.
#[cfg(not(feature = "tpm"))]
pub fn tpm(_: &str, _: &Path, _: &Path) -> Result<Arc<dyn QuotePort>, String> {
    Err("this hostd was built without TPM support (cargo feature `tpm`)".to_owned())
}

/// The TPM that tpm2-tss calls `tcti`, with the event logs that explain its PCRs.
#[cfg(feature = "tpm")]
pub fn tpm(tcti: &str, firmware: &Path, userspace: &Path) -> Result<Arc<dyn QuotePort>, String> {
    Ok(Arc::new(device::Tpm {
        tcti: tcti.to_owned(),
        logs: attestation::tpm::EventLogFiles {
            firmware: firmware.to_owned(),
            userspace: userspace.to_owned(),
        },
        one: tokio::sync::Mutex::default(),
    }))
}

#[cfg(feature = "tpm")]
mod device {
    use std::time::Duration;

    use async_trait::async_trait;
    use attestation::tpm::{EventLogFiles, TpmDevice, TpmEvidence};

    use super::super::chain;
    use crate::ports::QuotePort;

    /// A slow TPM makes a key and a quote in seconds.
    const PATIENCE: Duration = Duration::from_secs(60);

    pub(super) struct Tpm {
        pub(super) tcti: String,
        pub(super) logs: EventLogFiles,
        pub(super) one: tokio::sync::Mutex<()>,
    }

    #[async_trait]
    impl QuotePort for Tpm {
        async fn quote(&self, data: [u8; 32]) -> Result<TpmEvidence, String> {
            let _one = self.one.lock().await;
            let (tcti, logs) = (self.tcti.clone(), self.logs.clone());
            let quoting = tokio::task::spawn_blocking(move || {
                let mut tpm = TpmDevice::open(&tcti).map_err(|e| chain(&e))?;
                tpm.evidence(&data, &logs).map_err(|e| chain(&e))
            });
            match tokio::time::timeout(PATIENCE, quoting).await {
                Ok(Ok(result)) => result,
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer in {PATIENCE:?}")),
            }
        }
    }
}
