//! DNS through hickory's stub resolver.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData};
use hickory_resolver::system_conf::read_system_conf;

use crate::names::Answer;
use crate::ports::DnsPort;

/// One question to one server; there are two tries.
const QUESTION: Duration = Duration::from_secs(3);

/// This host's resolver. Looks are rare, so nothing is kept between them: no cache, no connection, no stale settings.
pub struct Dns {
    nameservers: Vec<IpAddr>,
}

impl Dns {
    /// Asks these resolvers; none named: those of /etc/resolv.conf, read at each look.
    pub fn new(nameservers: Vec<IpAddr>) -> Self {
        Self { nameservers }
    }

    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let servers = if self.nameservers.is_empty() {
            read_system_conf()?.0.name_servers().to_vec()
        } else {
            self.nameservers
                .iter()
                .copied()
                .map(NameServerConfig::udp_and_tcp)
                .collect()
        };
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let mut options = ResolverOpts::default();
        options.timeout = QUESTION;
        options.attempts = 2;
        options.cache_size = 0;
        options.edns0 = true;
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
    }

    async fn look_up(&self, name: &str) -> Result<Vec<String>, NetError> {
        let mut name = Name::from_ascii(name)?;
        name.set_fqdn(true);
        match self.resolver()?.txt_lookup(name).await {
            Ok(found) => Ok(found
                .answers()
                .iter()
                .filter_map(|record| match &record.data {
                    RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
                    _ => None,
                })
                .collect()),
            // Only these two say that there is nothing; SERVFAIL, REFUSED and the like say that the server can't tell.
            Err(NetError::Dns(DnsError::NoRecordsFound(none)))
                if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError) =>
            {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl DnsPort for Dns {
    async fn texts(&self, name: &str) -> Answer {
        match self.look_up(name).await {
            Ok(texts) => Answer::Texts(texts),
            Err(error) => Answer::Failed(super::chain(&error)),
        }
    }
}
