/**
 * The ledger of Decent Cloud.
 *
 * `connect` gives an object with one typed method for each of the ledger's (`npm run generate` makes it from decent.did,
 * which `ledgerd interface` prints). Every answer of an update is verified against the pinned root key, and every query's
 * signature against the key of the node that gave it; the root key is never fetched.
 */
import { Actor, HttpAgent, type ActorSubclass, type Identity } from "@icp-sdk/core/agent";
import { Ed25519KeyIdentity } from "@icp-sdk/core/identity";
import { idlFactory, type _SERVICE } from "./generated/decent.did";

export type * from "./generated/decent.did";

/** The three settings that name a ledger: what stands in client.toml. */
export interface LedgerSettings {
  url: string;
  canister_id: string;
  /** The public root key, DER in hexadecimal. */
  root_key: string;
}

/** The agent that everything of `@icp-sdk` takes. Without an identity it can only read. */
export async function agent(settings: LedgerSettings, identity?: Identity): Promise<HttpAgent> {
  const rootKey = Uint8Array.from(Buffer.from(settings.root_key, "hex"));
  return HttpAgent.create({ host: settings.url, rootKey, ...(identity ? { identity } : {}) });
}

/** The ledger with all its methods. */
export async function connect(settings: LedgerSettings, identity?: Identity): Promise<ActorSubclass<_SERVICE>> {
  const canisterId = settings.canister_id;
  return Actor.createActor<_SERVICE>(idlFactory, { agent: await agent(settings, identity), canisterId });
}

/** An Ed25519 key as `decent key new` and OpenSSL write it (PKCS #8, version 1, in PEM). */
export function keyFromPem(pem: string): Ed25519KeyIdentity {
  const body = pem.match(/-----BEGIN PRIVATE KEY-----([^-]+)-----END PRIVATE KEY-----/)?.[1];
  const der = Buffer.from(body ?? "", "base64");
  // RFC 8410: version, algorithm 1.3.101.112, and the key in an OCTET STRING of its own.
  const prefix = "302e020100300506032b657004220420";
  if (der.length !== 48 || der.subarray(0, 16).toString("hex") !== prefix) {
    throw new Error("not an Ed25519 key in PEM (PKCS #8, version 1)");
  }
  return Ed25519KeyIdentity.fromSecretKey(Uint8Array.from(der.subarray(16)));
}

/** The value of a reply, or the ledger's refusal as an error. */
export function ok<T, E>(reply: { Ok: T } | { Err: E }): T {
  if ("Err" in reply) {
    const plain = (_: string, value: unknown) => (typeof value === "bigint" ? value.toString() : value);
    throw new Error(`the ledger refuses: ${JSON.stringify(reply.Err, plain)}`);
  }
  return reply.Ok;
}
