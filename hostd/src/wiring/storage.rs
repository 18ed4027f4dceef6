//! Images, disks and seeds through [`crate::storage`].

use std::path::PathBuf;

use async_trait::async_trait;
use ledger::api::{AtRest, ContractId, ImageRef};

use crate::ports::{ImageFiles, SeedSpec, Space, StorageError, StoragePort};
use crate::seed::SeedNetwork;
use crate::storage::{Encryption, Owner, Store};

/// This host's storage.
pub struct Storage(Store);

impl Storage {
    /// Over an opened store.
    pub fn new(store: Store) -> Self {
        Self(store)
    }
}

fn sort(error: crate::storage::StorageError) -> StorageError {
    let text = super::chain(&error);
    if error.is_transient() {
        StorageError::Failed(text)
    } else {
        StorageError::Refused(text)
    }
}

fn owner(uid: u32) -> Owner {
    if uid == 0 {
        Owner::SELF
    } else {
        Owner { uid, gid: uid }
    }
}

#[async_trait]
impl StoragePort for Storage {
    async fn ensure_image(&self, image: &ImageRef) -> Result<ImageFiles, StorageError> {
        let files = self.0.ensure_image(image).await.map_err(sort)?;
        Ok(ImageFiles {
            firmware: files.firmware,
            kernel: files.kernel,
            initrd: files.initrd,
            cmdline: files.cmdline,
        })
    }

    async fn create_disk(
        &self,
        id: ContractId,
        gib: u64,
        at_rest: AtRest,
        uid: u32,
    ) -> Result<PathBuf, StorageError> {
        let encryption = match at_rest {
            AtRest::Encrypted => Encryption::Luks2,
            AtRest::Any if self.0.at_rest().is_available() => Encryption::Luks2,
            AtRest::Any => Encryption::None,
        };
        self.0
            .create_disk(id, gib, encryption, owner(uid))
            .await
            .map_err(sort)
    }

    async fn write_seed(&self, id: ContractId, seed: &SeedSpec, uid: u32) -> Result<PathBuf, StorageError> {
        let spec = crate::seed::SeedSpec {
            contract: id,
            salt: seed.salt,
            public_keys: seed.ssh_public_keys.clone(),
            tls_names: seed.tls_names.clone(),
            user_data: seed.user_data.clone(),
            network: SeedNetwork {
                mac: seed.nic.mac.clone(),
                address: seed.nic.ip4,
                gateway: netns::GATEWAY,
                nameservers: seed.nameservers.clone(),
                mtu: None,
            },
        };
        self.0.write_seed(spec, owner(uid)).await.map_err(sort)
    }

    async fn wipe(&self, id: ContractId) -> Result<(), StorageError> {
        self.0.wipe(id).await.map(drop).map_err(sort)
    }

    async fn disks(&self) -> Result<Vec<ContractId>, StorageError> {
        self.0.disks().await.map_err(sort)
    }

    async fn space(&self) -> Result<Space, StorageError> {
        let space = self.0.space().await.map_err(sort)?;
        Ok(Space {
            available_bytes: space.available_bytes,
            used_bytes: space.used_bytes,
        })
    }
}
