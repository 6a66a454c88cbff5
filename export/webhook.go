package export

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken"
)

// Headers of a delivery, by the Standard Webhooks specification.
const (
	HeaderID        = "Webhook-Id"        // the same at every attempt: a receiver recognises what came twice
	HeaderTimestamp = "Webhook-Timestamp" // Unix seconds, of the attempt
	HeaderSignature = "Webhook-Signature" // "v1," and base64 of HMAC-SHA256 over ID.timestamp.body; several with spaces between
)

// WebhookConfig configures [NewWebhook]; zero fields take the default in brackets.
type WebhookConfig struct {
	URL string // required: https, or http on loopback
	// Secrets sign deliveries. At least one is required, of 24 bytes or more; while one rotates, each signs.
	Secrets [][]byte
	Client  *http.Client // [one of its own] redirects are never followed
	// Encode makes the line of an event. nil: its JSON; OCSFEncoder makes another.
	Encode func(*apitoken.Event) ([]byte, error)
	// Queue is how many events wait in memory. Zero: none. Then Audit answers when the receiver has, so that the service's own
	// feed, which is durable, is the queue, and nothing is ever lost. With a queue Audit answers at once, ErrQueueFull when
	// it is full, and what waits when the process dies is lost.
	Queue   int
	Batch   int           // [100] events in a delivery, of those that wait
	Timeout time.Duration // [10s] of an attempt
	// Retry is the pause after a failed attempt, doubled up to MaxRetry, or as long as the receiver asked for.
	Retry    time.Duration    // [1s]
	MaxRetry time.Duration    // [1m]
	Logger   *slog.Logger     // nil: silent
	Now      func() time.Time // nil: time.Now
}

// ErrQueueFull: the webhook's queue is full; the same event may be given again.
var ErrQueueFull = errors.New("export: the webhook's queue is full")

// ErrClosed: the webhook was closed.
var ErrClosed = errors.New("export: the webhook is closed")

// Webhook posts events as JSON Lines, signed, and tries again what failed, in order. It is a [Writer], and by Publish it takes
// checkpoints of a ledger too.
type Webhook struct {
	cfg    WebhookConfig
	client http.Client

	mu     sync.Mutex // guards queue and closed
	queue  []apitoken.Event
	closed bool
	kick   chan struct{}

	ctx  context.Context
	stop context.CancelFunc
	done chan struct{}
}

// NewWebhook checks c, and starts a goroutine if c has a queue: Close ends it.
func NewWebhook(c WebhookConfig) (*Webhook, error) {
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return nil, errors.New("export: WebhookConfig.URL must be a URL without user and fragment")
	case u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
		return nil, errors.New("export: WebhookConfig.URL must be https: events tell of people")
	case len(c.Secrets) == 0:
		return nil, errors.New("export: WebhookConfig.Secrets is required: without one a receiver believes anybody")
	case c.Queue < 0 || c.Batch < 0 || c.Timeout < 0 || c.Retry < 0 || c.MaxRetry < 0:
		return nil, errors.New("export: WebhookConfig: Queue, Batch, Timeout, Retry and MaxRetry must not be negative")
	}
	for _, s := range c.Secrets {
		if len(s) < minSecret {
			return nil, errors.New("export: WebhookConfig.Secrets: each has at least 24 bytes")
		}
	}
	w := &Webhook{cfg: c, kick: make(chan struct{}, 1), done: make(chan struct{})}
	if c.Client != nil {
		w.client = *c.Client
	}
	w.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	d := &w.cfg
	if d.Encode == nil {
		d.Encode = func(e *apitoken.Event) ([]byte, error) { return json.Marshal(e) }
	}
	if d.Batch == 0 {
		d.Batch = 100
	}
	if d.Timeout == 0 {
		d.Timeout = 10 * time.Second
	}
	if d.Retry == 0 {
		d.Retry = time.Second
	}
	if d.MaxRetry == 0 {
		d.MaxRetry = max(time.Minute, d.Retry)
	}
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	w.ctx, w.stop = context.WithCancel(context.Background())
	if d.Queue == 0 {
		close(w.done)
	} else {
		go w.run()
	}
	return w, nil
}

const minSecret = 24 // bytes, by the Standard Webhooks specification

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Audit implements [apitoken.Auditor]. Without a queue a failed attempt is repeated, after the pauses that the configuration says, as
// long as ctx has a deadline that leaves time for it. Then the sink that called calls again.
func (w *Webhook) Audit(ctx context.Context, e apitoken.Event) error {
	return w.AuditAll(ctx, []apitoken.Event{e})
}

// AuditAll implements [Writer]. With a queue all of list gets in, or nothing and ErrQueueFull.
func (w *Webhook) AuditAll(ctx context.Context, list []apitoken.Event) error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return ErrClosed
	}
	if w.cfg.Queue > 0 {
		defer w.mu.Unlock()
		if len(w.queue)+len(list) > w.cfg.Queue {
			return ErrQueueFull
		}
		w.queue = append(w.queue, list...)
		select {
		case w.kick <- struct{}{}:
		default:
		}
		return nil
	}
	w.mu.Unlock()
	for len(list) > 0 {
		n := min(len(list), w.cfg.Batch)
		if err := w.insist(ctx, list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// insist delivers list, and tries again while ctx's deadline is further away than the pause.
func (w *Webhook) insist(ctx context.Context, list []apitoken.Event) error {
	for pause := w.cfg.Retry; ; pause = min(2*pause, w.cfg.MaxRetry) {
		err := w.deliver(ctx, list)
		if err == nil || ctx.Err() != nil {
			return err
		}
		wait := w.wait(pause, err)
		if end, ok := ctx.Deadline(); !ok || time.Until(end) <= wait {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// wait is the pause after err, with jitter, or as long as the receiver asked for.
func (w *Webhook) wait(pause time.Duration, err error) time.Duration {
	wait := pause/2 + time.Duration(mathrand.Int64N(int64(pause)))
	var refused *statusError
	if errors.As(err, &refused) {
		wait = max(wait, min(refused.after, 10*w.cfg.MaxRetry))
	}
	return wait
}

// Publish posts a signed checkpoint of a ledger as text/plain, signed like events.
func (w *Webhook) Publish(ctx context.Context, signed []byte) error {
	return w.post(ctx, "text/plain; charset=utf-8", signed)
}

// Waiting is how many events are in the queue.
func (w *Webhook) Waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue)
}

// Close takes no more events, and delivers what waits until ctx ends; then the rest is lost, and the error says how much.
func (w *Webhook) Close(ctx context.Context) error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	select {
	case w.kick <- struct{}{}:
	default:
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		w.stop()
		<-w.done
	}
	w.stop()
	if n := w.Waiting(); n > 0 {
		return fmt.Errorf("export: %d events were not delivered: %w", n, cmp.Or(ctx.Err(), ErrClosed))
	}
	return nil
}

// run delivers what waits in the queue, in order. An event leaves it when the receiver has it.
func (w *Webhook) run() {
	defer close(w.done)
	pause := w.cfg.Retry
	for {
		w.mu.Lock()
		batch := append([]apitoken.Event(nil), w.queue[:min(len(w.queue), w.cfg.Batch)]...)
		closed := w.closed
		w.mu.Unlock()
		if len(batch) == 0 {
			if closed {
				return
			}
			select {
			case <-w.kick:
			case <-w.ctx.Done():
				return
			}
			continue
		}
		err := w.deliver(w.ctx, batch)
		if err == nil {
			pause = w.cfg.Retry
			w.mu.Lock()
			w.queue = append(w.queue[:0], w.queue[len(batch):]...)
			w.mu.Unlock()
			continue
		}
		if w.ctx.Err() != nil {
			return
		}
		wait := w.wait(pause, err)
		w.cfg.Logger.Warn("export: webhook", "waiting", w.Waiting(), "again", wait, "error", err)
		pause = min(2*pause, w.cfg.MaxRetry)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-w.ctx.Done():
			t.Stop()
			return
		}
	}
}

func (w *Webhook) deliver(ctx context.Context, list []apitoken.Event) error {
	body, err := encodeLines(list, w.cfg.Encode)
	if err != nil {
		return err
	}
	return w.post(ctx, "application/x-ndjson", body)
}

// statusError is an answer that is no 2xx.
type statusError struct {
	status string
	after  time.Duration // what the receiver asked to wait
}

func (e *statusError) Error() string { return "export: the webhook's receiver answered " + e.status }

func (w *Webhook) post(ctx context.Context, contentType string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.cfg.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	sum := sha256.Sum256(body)
	id := "msg_" + base64.RawURLEncoding.EncodeToString(sum[:18])
	at := strconv.FormatInt(w.cfg.Now().Unix(), 10)
	var signatures []string
	for _, secret := range w.cfg.Secrets {
		signatures = append(signatures, "v1,"+base64.StdEncoding.EncodeToString(webhookMAC(secret, id, at, body)))
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set(HeaderID, id)
	req.Header.Set(HeaderTimestamp, at)
	req.Header.Set(HeaderSignature, strings.Join(signatures, " "))
	res, err := w.client.Do(req)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, 4096) // so that the connection can be used again
	if res.StatusCode/100 != 2 {
		return &statusError{res.Status, retryAfter(res.Header.Get("Retry-After"), w.cfg.Now())}
	}
	return nil
}

// retryAfter reads both forms of RFC 9110 §10.2.3.
func retryAfter(text string, now time.Time) time.Duration {
	if s, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

func webhookMAC(secret []byte, id, at string, body []byte) []byte {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(id + "." + at + "."))
	m.Write(body)
	return m.Sum(nil)
}

// ErrSignature: a delivery was not signed with one of the secrets, or too long ago.
var ErrSignature = errors.New("export: the delivery is not signed as it must be")

// VerifyWebhook is for receivers: it checks the headers of a delivery against its body. tolerance is how far the two clocks
// may be apart (zero: 5 minutes); what comes again within it is recognised by [HeaderID]. A secret of less than 24 bytes, such as
// that of a variable that was not set, signs nothing: with it alone no delivery is taken.
func VerifyWebhook(h http.Header, body []byte, now time.Time, tolerance time.Duration, secrets ...[]byte) error {
	if tolerance == 0 {
		tolerance = 5 * time.Minute
	}
	id, at := h.Get(HeaderID), h.Get(HeaderTimestamp)
	sent, err := strconv.ParseInt(at, 10, 64)
	if err != nil || id == "" || strings.Contains(id, ".") {
		return ErrSignature
	}
	if d := now.Sub(time.Unix(sent, 0)); d > tolerance || d < -tolerance {
		return ErrSignature
	}
	for _, secret := range secrets {
		if len(secret) < minSecret {
			continue
		}
		want := webhookMAC(secret, id, at, body)
		for s := range strings.FieldsSeq(h.Get(HeaderSignature)) {
			got, ok := strings.CutPrefix(s, "v1,")
			mac, err := base64.StdEncoding.DecodeString(got)
			if ok && err == nil && hmac.Equal(mac, want) {
				return nil
			}
		}
	}
	return ErrSignature
}
