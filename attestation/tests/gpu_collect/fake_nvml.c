/* A stand-in for libnvidia-ml.so: the functions that attest-gpu uses, with the real library's ABI (structures of
 * nvml.h's confidential-computing part, driver 550 and newer). What it answers comes from a Unix socket
 * (FAKE_NVML_SOCKET): one question per connection,
 *   'N'                           -> return code (4 bytes, host order), number of devices (4 bytes)
 *   'R' device(1) nonce(32)       -> return code, report
 *   'C' device(1)                 -> return code, certificate chain (PEM)
 * A device's handle is its index plus one. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { OK = 0, INVALID_ARGUMENT = 2, UNKNOWN = 999 };

struct certificate {
    unsigned int cert_chain_size;
    unsigned int attestation_cert_chain_size;
    unsigned char cert_chain[0x1000];
    unsigned char attestation_cert_chain[0x1400];
};

struct report {
    unsigned int is_cec_report_present;
    unsigned int report_size;
    unsigned int cec_report_size;
    unsigned char nonce[0x20];
    unsigned char report[0x2000];
    unsigned char cec_report[0x1000];
};

/* Returns the answer's code; the rest of the answer goes into `out`, its whole length into `len`. */
static int ask(const void *question, size_t size, unsigned char *out, size_t max, unsigned int *len) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("FAKE_NVML_SOCKET");
    if (!path || strlen(path) >= sizeof address.sun_path) return UNKNOWN;
    strcpy(address.sun_path, path);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    uint32_t code = UNKNOWN;
    unsigned char byte;
    *len = 0;
    if (connect(s, (struct sockaddr *)&address, sizeof address) == 0
        && write(s, question, size) == (ssize_t)size && shutdown(s, SHUT_WR) == 0
        && recv(s, &code, sizeof code, MSG_WAITALL) == sizeof code) {
        while (read(s, &byte, 1) == 1) {
            if (*len < max) out[*len] = byte;
            ++*len;
        }
    }
    close(s);
    return (int)code;
}

int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "told by the fake"; }
int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    strncpy(version, "590.12", length);
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    unsigned int len;
    return ask("N", 1, (unsigned char *)count, sizeof *count, &len);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    *device = (void *)(uintptr_t)(index + 1);
    return OK;
}

int nvmlDeviceGetConfComputeGpuAttestationReport(void *device, struct report *answer) {
    unsigned char question[34] = {'R', (unsigned char)((uintptr_t)device - 1)};
    if (!device) return INVALID_ARGUMENT;
    memcpy(question + 2, answer->nonce, 32);
    return ask(question, sizeof question, answer->report, sizeof answer->report, &answer->report_size);
}

int nvmlDeviceGetConfComputeGpuCertificate(void *device, struct certificate *answer) {
    unsigned char question[2] = {'C', (unsigned char)((uintptr_t)device - 1)};
    if (!device) return INVALID_ARGUMENT;
    return ask(question, sizeof question, answer->attestation_cert_chain, sizeof answer->attestation_cert_chain,
               &answer->attestation_cert_chain_size);
}
