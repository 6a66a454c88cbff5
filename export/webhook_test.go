package export_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/export"
	"github.com/apitoken-go/apitoken/store/memstore"
)

var secret = []byte("a secret of at least 24 bytes")

// receiver is a transport that answers as a test says.
type receiver struct {
	mu     sync.Mutex
	answer func(n int) (status int, header http.Header, err error)
	n      int
	times  []time.Time
	ids    []string
	bodies []string // that were taken
}

func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	r.times = append(r.times, time.Now())
	r.ids = append(r.ids, req.Header.Get(export.HeaderID))
	if err := export.VerifyWebhook(req.Header, body, time.Now(), 0, secret); err != nil {
		return nil, err
	}
	status, header, err := 200, http.Header{}, error(nil)
	if r.answer != nil {
		status, header, err = r.answer(r.n)
	}
	if err != nil {
		return nil, err
	}
	if status/100 == 2 {
		r.bodies = append(r.bodies, string(body))
	}
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Header: header, Body: io.NopCloser(strings.NewReader("ok")), Request: req}, nil
}

func webhook(t testing.TB, r *receiver, change func(*export.WebhookConfig)) *export.Webhook {
	t.Helper()
	c := export.WebhookConfig{URL: "https://siem.example.com/in", Secrets: [][]byte{secret}, Client: &http.Client{Transport: r}}
	if change != nil {
		change(&c)
	}
	w, err := export.NewWebhook(c)
	require.NoError(t, err)
	return w
}

func TestWebhookRetriesInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(n int) (int, http.Header, error) {
			switch n {
			case 1:
				return 0, nil, errors.New("connection refused")
			case 2:
				return 503, http.Header{"Retry-After": {"30"}}, nil
			case 3:
				return 302, http.Header{"Location": {"https://evil.example.com/"}}, nil
			case 4:
				return 400, http.Header{}, nil
			}
			return 204, http.Header{}, nil
		}}
		w := webhook(t, r, func(c *export.WebhookConfig) { c.Queue, c.Batch = 10, 2 })
		ctx := context.Background()
		for _, id := range []string{"1", "2", "3"} {
			require.NoError(t, w.Audit(ctx, apitoken.Event{ID: id}), "with a queue nobody waits")
		}
		require.NoError(t, w.Close(ctx))
		require.Zero(t, w.Waiting())
		all := strings.Join(r.bodies, "")
		require.Equal(t, []string{"1", "2", "3"}, written(t, []byte(all)))
		require.Equal(t, r.ids[1], r.ids[2], "a delivery has one ID at all its attempts")
		require.Equal(t, r.ids[2], r.ids[3])
		require.Equal(t, r.ids[3], r.ids[4])
		require.GreaterOrEqual(t, r.times[2].Sub(r.times[1]), 30*time.Second, "as long as the receiver asked for")
		require.ErrorIs(t, w.Audit(ctx, apitoken.Event{}), export.ErrClosed)
	})
}

func TestWebhookQueueIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(int) (int, http.Header, error) { return 500, http.Header{}, nil }}
		w := webhook(t, r, func(c *export.WebhookConfig) { c.Queue = 3 })
		ctx := context.Background()
		require.NoError(t, w.AuditAll(ctx, []apitoken.Event{{ID: "1"}, {ID: "2"}}))
		require.ErrorIs(t, w.AuditAll(ctx, []apitoken.Event{{ID: "3"}, {ID: "4"}}), export.ErrQueueFull, "all or nothing")
		require.NoError(t, w.Audit(ctx, apitoken.Event{ID: "3"}))
		require.ErrorIs(t, w.Audit(ctx, apitoken.Event{ID: "4"}), export.ErrQueueFull)
		require.Equal(t, 3, w.Waiting())
		time.Sleep(time.Hour)
		synctest.Wait()
		r.mu.Lock()
		require.Less(t, r.n, 150, "the pause grows to a minute")
		require.Greater(t, r.n, 40)
		r.mu.Unlock()
		ended, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		require.ErrorContains(t, w.Close(ended), "3 events were not delivered")
		err := w.Close(ctx) // once more, by someone with more time: they are lost all the same
		require.ErrorIs(t, err, export.ErrClosed)
		require.ErrorContains(t, err, "3 events were not delivered")
	})
}

func TestWebhookWithoutQueueIsTheSink(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var mu sync.Mutex
	var got bytes.Buffer
	down := true
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil || export.VerifyWebhook(r.Header, body, time.Now(), time.Minute, []byte("an older one"), secret) != nil:
			rw.WriteHeader(401)
		case down:
			down = false
			rw.WriteHeader(503)
		default:
			got.Write(body)
		}
	}))
	defer server.Close()
	w, err := export.NewWebhook(export.WebhookConfig{URL: server.URL, Secrets: [][]byte{[]byte("the next secret, of 24 bytes"), secret}})
	require.NoError(t, err)
	svc := service(t, memstore.New(), nil)
	issue(t, svc, "alice", 5)
	_, err = export.Copy(ctx, svc, apitoken.EventQuery{}, export.Place{}, w)
	require.Error(t, err, "an answer of 503 is an error at once: the feed is the queue")
	_, err = export.Copy(ctx, svc, apitoken.EventQuery{}, export.Place{}, w)
	require.NoError(t, err)
	require.Equal(t, ids(t, svc, apitoken.EventQuery{}), written(t, got.Bytes()))
	got.Reset()
	require.NoError(t, w.Publish(ctx, []byte("origin\n1\nroot\n")))
	require.Equal(t, "origin\n1\nroot\n", got.String())
	require.NoError(t, w.Close(ctx))
}

// TestWebhookRetriesWithinItsCall: where the sink that calls grants it time, a receiver that fails one time in three holds nothing up.
func TestWebhookRetriesWithinItsCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(n int) (int, http.Header, error) {
			if n%3 == 1 {
				return 503, http.Header{}, nil
			}
			return 200, http.Header{}, nil
		}}
		w := webhook(t, r, func(c *export.WebhookConfig) { c.Retry = 100 * time.Millisecond })
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		require.NoError(t, w.Audit(ctx, apitoken.Event{ID: "1"}))
		require.Len(t, r.bodies, 1)
		require.Equal(t, 2, r.n)

		r.answer = func(int) (int, http.Header, error) { return 503, http.Header{"Retry-After": {"60"}}, nil }
		began := time.Now()
		require.Error(t, w.Audit(ctx, apitoken.Event{ID: "2"}), "a receiver that asks for more time than there is gets it from the sink")
		require.Equal(t, 3, r.n)
		require.Zero(t, time.Since(began))
	})
}

func TestVerifyWebhook(t *testing.T) {
	t.Parallel()
	r := &receiver{}
	w := webhook(t, r, nil)
	require.NoError(t, w.Audit(context.Background(), apitoken.Event{ID: "1"}))
	now := time.Unix(1_700_000_000, 0)
	var h http.Header
	var body []byte
	c := webhook(t, r, func(c *export.WebhookConfig) {
		c.Now = func() time.Time { return now }
		c.Client = &http.Client{Transport: roundTrip(func(req *http.Request) (*http.Response, error) {
			h = req.Header
			body, _ = io.ReadAll(req.Body)
			return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
		})}
	})
	require.NoError(t, c.Audit(context.Background(), apitoken.Event{ID: "1"}))
	require.NoError(t, export.VerifyWebhook(h, body, now.Add(4*time.Minute), 0, secret))
	require.ErrorIs(t, export.VerifyWebhook(h, body, now.Add(6*time.Minute), 0, secret), export.ErrSignature, "too old")
	require.ErrorIs(t, export.VerifyWebhook(h, body, now.Add(-6*time.Minute), 0, secret), export.ErrSignature, "too new")
	require.ErrorIs(t, export.VerifyWebhook(h, append(body, ' '), now, 0, secret), export.ErrSignature)
	require.ErrorIs(t, export.VerifyWebhook(h, body, now, 0, []byte("another secret of 24 bytes..")), export.ErrSignature)
	require.ErrorIs(t, export.VerifyWebhook(h, body, now, 0), export.ErrSignature, "no secret opens nothing")
	require.ErrorIs(t, export.VerifyWebhook(http.Header{}, body, now, 0, secret), export.ErrSignature)
	forged := h.Clone() // what anybody can make where the receiver's secret was not set
	m := hmac.New(sha256.New, nil)
	m.Write([]byte(h.Get(export.HeaderID) + "." + h.Get(export.HeaderTimestamp) + "." + string(body)))
	forged.Set(export.HeaderSignature, "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)))
	require.ErrorIs(t, export.VerifyWebhook(forged, body, now, 0, nil), export.ErrSignature)
	require.ErrorIs(t, export.VerifyWebhook(forged, body, now, 0, []byte{}), export.ErrSignature)
	h.Set(export.HeaderID, h.Get(export.HeaderID)+"."+"1")
	require.ErrorIs(t, export.VerifyWebhook(h, body, now, 0, secret), export.ErrSignature)
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestWebhookConfigIsChecked(t *testing.T) {
	t.Parallel()
	for _, c := range []export.WebhookConfig{
		{}, {URL: "http://siem.example.com", Secrets: [][]byte{secret}}, {URL: "https://user@siem.example.com", Secrets: [][]byte{secret}}, {URL: "https://siem.example.com"},
		{URL: "https://siem.example.com", Secrets: [][]byte{[]byte("short")}}, {URL: "https://siem.example.com", Secrets: [][]byte{secret}, Queue: -1},
		{URL: "https://siem.example.com", Secrets: [][]byte{secret}, Retry: -1}, {URL: "ftp://localhost", Secrets: [][]byte{secret}},
	} {
		_, err := export.NewWebhook(c)
		require.Error(t, err)
	}
}

// An encoder that panics fails its own delivery: it is tried again, and the process lives.
func TestWebhookWhoseEncoderPanics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(int) (int, http.Header, error) { return 204, http.Header{}, nil }}
		panics := true
		w := webhook(t, r, func(c *export.WebhookConfig) {
			c.Queue = 10
			c.Encode = func(e *apitoken.Event) ([]byte, error) {
				if panics {
					panics = false
					panic("a bug of the host's")
				}
				return json.Marshal(e)
			}
		})
		require.NoError(t, w.Audit(t.Context(), apitoken.Event{ID: "1"}))
		require.NoError(t, w.Close(context.Background()))
		require.Equal(t, []string{"1"}, written(t, []byte(strings.Join(r.bodies, ""))))
	})
}
