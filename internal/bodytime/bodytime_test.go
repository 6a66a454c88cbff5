package bodytime

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func dial(t *testing.T, h http.Handler, head string) net.Conn {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	conn, err := net.Dial("tcp", strings.TrimPrefix(srv.URL, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = fmt.Fprint(conn, head)
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	return conn
}

// A body that was read to its end leaves no deadline behind: it would end the context of a handler that is slow afterwards.
func TestTheDeadlineEndsWithTheBody(t *testing.T) {
	t.Parallel()
	const d = 100 * time.Millisecond
	conn := dial(t, Front(d, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusRequestTimeout)
			return
		}
		select {
		case <-r.Context().Done():
			w.WriteHeader(http.StatusInternalServerError)
		case <-time.After(3 * d):
		}
	})), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, http.StatusOK, res.StatusCode)
}

// A front inside another one does not put the deadline off.
func TestTheOuterFrontCounts(t *testing.T) {
	t.Parallel()
	inner := Front(time.Hour, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			w.WriteHeader(http.StatusRequestTimeout)
		}
	}))
	conn := dial(t, Front(50*time.Millisecond, inner), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, http.StatusRequestTimeout, res.StatusCode)
}

// A request without a body keeps its connection and its context: long polls have no deadline here.
func TestNoBodyNoDeadline(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	served := false
	Front(time.Nanosecond, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, wrapped := r.Body.(*body)
		served = !wrapped
	})).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	require.True(t, served)
}
