/* The load generator: HTTP/1.1 requests over keep-alive connections, one thread, one epoll. What the modes mean, and what a plan
 * and a load are, is told in load.py, which compiles this file, packs the plan to stdin and reads the load as JSON from stdout.
 *
 * A plan, little-endian and packed: the fields of `Plan` in their order below, then each request as two lengths (32 bits), head
 * and tail. Whatever goes wrong ends the program with status 1 and one line on stderr.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "CRC-32 and the plan are read as little-endian numbers"
#endif

enum {
    HEAD_BYTES_MAX = 1 << 16,
    ANSWER_BYTES_MAX = 1 << 30,
    TOKEN_DIGITS = 32,
    EVENTS_MAX = 64,
    SHOWN_BYTES = 300,
};
static const uint64_t SECOND_NS = 1000000000;
/* How often is looked for answers that are overdue. */
static const uint64_t LOOK_NS = 100000000;

typedef struct {
    uint32_t head_bytes, tail_bytes;
    char *head, *tail;
} Request;

static struct {
    uint32_t port, connections, requests_count, sequence, keep_times;
    uint64_t count;
    double rate_per_s; /* 0: closed loop */
    double answer_s_max;
    Request *requests;
} plan;

typedef struct {
    int fd;
    bool waiting_to_write;
    bool busy;
    uint64_t due_ns, sent_ns;
    uint64_t number, last; /* of the request that is under way, and of the last one of its sequence */
    char token[TOKEN_DIGITS + 1];
    size_t sent_bytes;
    char *answer;
    size_t answer_bytes, answer_room;
    size_t head_bytes, whole_bytes; /* 0 until the head is complete */
} Connection;

static Connection *connections;
static Connection **idle; /* a ring, so that all connections take turns */
static uint32_t idle_first, idle_count;
static int epoll;
static uint64_t start_ns, token_run, begun, answered, body_sum;
static uint64_t *took_ns;      /* per sequence */
static double *answered_at_s; /* per request */

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

/* The beginning of what was received, fit for one line. */
static const char *shown(const Connection *connection) {
    static char text[4 * SHOWN_BYTES + 1];
    char *end = text;
    for (size_t i = 0; i < connection->answer_bytes && i < SHOWN_BYTES; i++) {
        unsigned char byte = connection->answer[i];
        if (byte == '\r' || byte == '\n')
            end += sprintf(end, "\\%c", byte == '\r' ? 'r' : 'n');
        else
            end += sprintf(end, byte < 32 || byte > 126 ? "\\x%02x" : "%c", byte);
    }
    *end = 0;
    return text;
}

static void *room(size_t count, size_t bytes) {
    void *found = calloc(count ? count : 1, bytes);
    if (!found) fail("no memory for %zu items of %zu bytes", count, bytes);
    return found;
}

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * SECOND_NS + now.tv_nsec;
}

static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* CRC-32 as zlib's, eight bytes at a time by eight tables ("slicing-by-8", Kounavis and Berry, 2005). */
static uint32_t crc_tables[8][256];

static void make_crc_tables(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320 : crc >> 1;
        crc_tables[0][byte] = crc;
    }
    for (int table = 1; table < 8; table++)
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t before = crc_tables[table - 1][byte];
            crc_tables[table][byte] = before >> 8 ^ crc_tables[0][before & 255];
        }
}

static uint32_t crc32(const char *data, size_t bytes) {
    uint32_t crc = ~0u;
    for (; bytes >= 8; bytes -= 8, data += 8) {
        uint32_t low, high;
        memcpy(&low, data, 4);
        memcpy(&high, data + 4, 4);
        low ^= crc;
        crc = crc_tables[7][low & 255] ^ crc_tables[6][low >> 8 & 255] ^ crc_tables[5][low >> 16 & 255] ^
              crc_tables[4][low >> 24] ^ crc_tables[3][high & 255] ^ crc_tables[2][high >> 8 & 255] ^
              crc_tables[1][high >> 16 & 255] ^ crc_tables[0][high >> 24];
    }
    for (; bytes; bytes--) crc = crc >> 8 ^ crc_tables[0][(crc ^ (unsigned char)*data++) & 255];
    return ~crc;
}

static void read_plan_bytes(void *into, size_t bytes) {
    if (fread(into, 1, bytes, stdin) != bytes) fail("the plan on stdin ends too early");
}

static void read_plan(void) {
    read_plan_bytes(&plan.port, 4);
    read_plan_bytes(&plan.connections, 4);
    read_plan_bytes(&plan.requests_count, 4);
    read_plan_bytes(&plan.sequence, 4);
    read_plan_bytes(&plan.keep_times, 4);
    read_plan_bytes(&plan.count, 8);
    read_plan_bytes(&plan.rate_per_s, 8);
    read_plan_bytes(&plan.answer_s_max, 8);
    plan.requests = room(plan.requests_count, sizeof(Request));
    for (uint32_t i = 0; i < plan.requests_count; i++) {
        Request *request = &plan.requests[i];
        read_plan_bytes(&request->head_bytes, 4);
        read_plan_bytes(&request->tail_bytes, 4);
        request->head = room(request->head_bytes, 1);
        request->tail = room(request->tail_bytes, 1);
        read_plan_bytes(request->head, request->head_bytes);
        read_plan_bytes(request->tail, request->tail_bytes);
    }
}

static void watch(Connection *connection, int operation, bool writable) {
    struct epoll_event event = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = connection};
    if (epoll_ctl(epoll, operation, connection->fd, &event)) fail("epoll_ctl: %s", strerror(errno));
    connection->waiting_to_write = writable;
}

static void make_idle(Connection *connection) {
    connection->busy = false;
    idle[(idle_first + idle_count++) % plan.connections] = connection;
}

static void open_connection(Connection *connection) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(plan.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = (time_t)plan.answer_s_max + 1};
    int on = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0) fail("socket: %s", strerror(errno));
    setsockopt(connection->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience); /* of connect as well */
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address))
        fail("can't connect to 127.0.0.1:%" PRIu32 ": %s", plan.port, strerror(errno));
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(connection->fd, F_SETFL, O_NONBLOCK);
    connection->answer_room = HEAD_BYTES_MAX;
    connection->answer = room(connection->answer_room, 1);
    watch(connection, EPOLL_CTL_ADD, false);
    make_idle(connection);
}

static void receive(Connection *connection) {
    ssize_t got = recv(connection->fd, connection->answer + connection->answer_bytes,
                       connection->answer_room - connection->answer_bytes, 0);
    if (got > 0) {
        connection->answer_bytes += got;
        return;
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    const char *how = got ? strerror(errno) : "end of stream";
    if (!connection->busy) fail("the service closed a connection that was idle (%s)", how);
    fail("the service closed a connection before its answer to request %" PRIu64 " was complete (%s); it has said '%s'",
         connection->number, how, shown(connection));
}

/* Send what is left of the request under way, as far as the socket takes it. */
static void push(Connection *connection) {
    const Request *request = &plan.requests[connection->number % plan.requests_count];
    struct iovec parts[3] = {
        {request->head, request->head_bytes},
        {connection->token, request->tail_bytes ? TOKEN_DIGITS : 0},
        {request->tail, request->tail_bytes},
    };
    size_t skip = connection->sent_bytes, left = 0;
    for (int i = 0; i < 3; i++) {
        size_t done = skip < parts[i].iov_len ? skip : parts[i].iov_len;
        parts[i].iov_base = (char *)parts[i].iov_base + done;
        parts[i].iov_len -= done;
        skip -= done;
        left += parts[i].iov_len;
    }
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = request->tail_bytes ? 3 : 1};
    ssize_t sent = sendmsg(connection->fd, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        const char *how = strerror(errno);
        if (!connection->answer_bytes) receive(connection);
        fail("the service takes no more of request %" PRIu64 " (%s); it has said '%s'", connection->number, how, shown(connection));
    }
    if (sent > 0) {
        connection->sent_bytes += sent;
        left -= sent;
    }
    if (connection->waiting_to_write != (left > 0)) watch(connection, EPOLL_CTL_MOD, left > 0);
}

static void begin_request(Connection *connection, uint64_t number, uint64_t at_ns) {
    connection->number = number;
    connection->sent_ns = at_ns;
    connection->sent_bytes = connection->answer_bytes = connection->head_bytes = connection->whole_bytes = 0;
    if (plan.requests[number % plan.requests_count].tail_bytes)
        snprintf(connection->token, sizeof connection->token, "%016" PRIx64 "%016" PRIx64, token_run, number);
    push(connection);
}

/* Begin every sequence that is due and finds an idle connection. Answers how long to wait for the next one that is due, 0 if only
 * answers can be waited for. */
static uint64_t begin_due(void) {
    uint64_t at_ns = now_ns();
    while (idle_count && begun < plan.count) {
        uint64_t due_ns = at_ns;
        if (plan.rate_per_s > 0) {
            due_ns = start_ns + (uint64_t)(begun / plan.rate_per_s * SECOND_NS);
            if (due_ns > at_ns) return due_ns - at_ns;
        }
        Connection *connection = idle[idle_first];
        idle_first = (idle_first + 1) % plan.connections;
        idle_count--;
        connection->busy = true;
        connection->due_ns = due_ns;
        connection->last = begun + plan.sequence - 1;
        uint64_t number = begun;
        begun += plan.sequence;
        begin_request(connection, number, at_ns);
        at_ns = now_ns();
    }
    return 0;
}

/* Whether the answer is there as a whole. The first look at a complete head checks it. */
static bool is_complete(Connection *connection) {
    if (!connection->whole_bytes) {
        const char *end = memmem(connection->answer, connection->answer_bytes, "\r\n\r\n", 4);
        if (!end) {
            if (connection->answer_bytes == connection->answer_room)
                fail("expected an answer with a head of at most %d bytes, got '%s'", HEAD_BYTES_MAX, shown(connection));
            return false;
        }
        static const char NAME[] = "\r\ncontent-length:";
        const size_t name_bytes = sizeof NAME - 1;
        uint64_t length = UINT64_MAX;
        for (const char *at = connection->answer; at + name_bytes < end; at++) {
            at = memchr(at, '\r', end - at);
            if (!at || at + name_bytes >= end) break;
            if (strncasecmp(at, NAME, name_bytes) == 0) {
                const char *digits = at + name_bytes + strspn(at + name_bytes, " ");
                if (isdigit((unsigned char)*digits)) length = strtoull(digits, NULL, 10);
                break;
            }
        }
        if (end - connection->answer < 12 || memcmp(connection->answer, "HTTP/1.1 200", 12) || length > ANSWER_BYTES_MAX)
            fail("expected status 200 with Content-Length (at most %d) for request %" PRIu64 ", got '%s'", ANSWER_BYTES_MAX,
                 connection->number, shown(connection));
        connection->head_bytes = end + 4 - connection->answer;
        connection->whole_bytes = connection->head_bytes + length;
        if (connection->whole_bytes >= connection->answer_room) {
            connection->answer_room = connection->whole_bytes + 1; /* what is too long must show */
            connection->answer = realloc(connection->answer, connection->answer_room);
            if (!connection->answer) fail("no memory for an answer of %zu bytes", connection->answer_room);
        }
    }
    if (connection->answer_bytes > connection->whole_bytes)
        fail("expected an answer of %zu bytes to request %" PRIu64 ", got at least %zu: '%s'", connection->whole_bytes,
             connection->number, connection->answer_bytes, shown(connection));
    return connection->answer_bytes == connection->whole_bytes;
}

/* Count an answer. The next request goes out before the body is summed up. */
static void take_answer(Connection *connection) {
    uint64_t at_ns = now_ns();
    const char *body = connection->answer + connection->head_bytes;
    size_t body_bytes = connection->whole_bytes - connection->head_bytes;
    if (connection->waiting_to_write)
        fail("the service answered request %" PRIu64 " before it had all of it", connection->number);
    if (plan.keep_times) answered_at_s[connection->number] = at_ns / 1e9;
    answered++;
    if (connection->number < connection->last) {
        begin_request(connection, connection->number + 1, at_ns);
    } else {
        took_ns[connection->number / plan.sequence] = at_ns - connection->due_ns;
        make_idle(connection);
        begin_due();
    }
    body_sum += crc32(body, body_bytes);
}

static void require_none_overdue(void) {
    static uint64_t looked_ns;
    uint64_t at_ns = now_ns();
    if (at_ns < looked_ns + LOOK_NS) return;
    looked_ns = at_ns;
    for (uint32_t i = 0; i < plan.connections; i++)
        if (connections[i].busy && at_ns > connections[i].sent_ns + (uint64_t)(plan.answer_s_max * SECOND_NS))
            fail("no answer to request %" PRIu64 " within %g s", connections[i].number, plan.answer_s_max);
}

/* Wait for answers, at most `wait_ns` or, if that is 0, LOOK_NS. epoll_wait counts in milliseconds, ppoll in nanoseconds. */
static int wait_for_events(struct epoll_event *events, uint64_t wait_ns) {
    int timeout_ms = LOOK_NS / 1000000;
    if (wait_ns && wait_ns < LOOK_NS) {
        struct pollfd looked_at = {.fd = epoll, .events = POLLIN};
        struct timespec timeout = {.tv_nsec = wait_ns};
        if (ppoll(&looked_at, 1, &timeout, NULL) <= 0) return 0;
        timeout_ms = 0;
    }
    int found = epoll_wait(epoll, events, EVENTS_MAX, timeout_ms);
    if (found < 0 && errno != EINTR) fail("epoll_wait: %s", strerror(errno));
    return found < 0 ? 0 : found;
}

static void run(void) {
    struct epoll_event events[EVENTS_MAX];
    start_ns = now_ns();
    uint64_t wait_ns = begin_due();
    while (answered < plan.count) {
        int found = wait_for_events(events, wait_ns);
        for (int i = 0; i < found; i++) {
            Connection *connection = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) push(connection);
            if (!(events[i].events & ~(uint32_t)EPOLLOUT)) continue;
            receive(connection);
            if (!connection->busy) {
                if (connection->answer_bytes > connection->whole_bytes)
                    fail("expected nothing on an idle connection, got '%s'", shown(connection));
            } else if (is_complete(connection)) {
                take_answer(connection);
            }
        }
        require_none_overdue();
        wait_ns = begin_due();
    }
}

static int ascending(const void *one, const void *other) {
    uint64_t first = *(const uint64_t *)one, second = *(const uint64_t *)other;
    return (first > second) - (first < second);
}

/* The nearest-rank percentile, as tests.bench.sheet.percentile. */
static double percentile_ms(uint64_t count, unsigned percent) {
    uint64_t rank = (count * percent + 99) / 100;
    return took_ns[rank ? rank - 1 : 0] / 1e6;
}

int main(void) {
    read_plan();
    make_crc_tables();
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); /* or each wait would take up to 50 us longer than asked */
    uint64_t sequences = plan.count / plan.sequence;
    took_ns = room(sequences, sizeof *took_ns);
    answered_at_s = room(plan.keep_times ? plan.count : 0, sizeof *answered_at_s);
    token_run = clock_ns(CLOCK_REALTIME);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) fail("epoll_create1: %s", strerror(errno));
    connections = room(plan.connections, sizeof *connections);
    idle = room(plan.connections, sizeof *idle);
    for (uint32_t i = 0; i < plan.connections; i++) open_connection(&connections[i]);

    uint64_t cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    run();
    cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_ns;
    double all_s = (now_ns() - start_ns) / 1e9;

    qsort(took_ns, sequences, sizeof *took_ns, ascending);
    printf("{\"requests_per_s\":%.17g,\"p50_ms\":%.17g,\"p99_ms\":%.17g,\"body_sum\":%" PRIu64 ",\"cpu_us\":%.17g,\"answered_at_s\":[",
           plan.count / all_s, percentile_ms(sequences, 50), percentile_ms(sequences, 99), body_sum, cpu_ns / 1e3 / plan.count);
    for (uint64_t i = 0; plan.keep_times && i < plan.count; i++) printf("%s%.9f", i ? "," : "", answered_at_s[i]);
    printf("]}\n");
    return 0;
}
