package apitokentest_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/httpauth"
)

// A host's own test of a handler behind the middleware, with a clock that it moves.
func ExampleNew() {
	_ = func(t *testing.T) { // func TestOrders(t *testing.T)
		svc := apitokentest.New(t, func(c *apitoken.Config) { c.Lifetimes.Access = time.Minute })
		orders := httpauth.New(svc, nil).Require("orders:read")(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))

		get := func(r *http.Request) int {
			w := httptest.NewRecorder()
			orders.ServeHTTP(w, r)
			return w.Code
		}
		signed := svc.Sign(httptest.NewRequest("GET", "/orders", nil), "alice", "orders:read")
		if code := get(signed); code != http.StatusOK {
			t.Errorf("alice gets %d", code)
		}
		svc.Advance(time.Minute)
		if code := get(signed); code != http.StatusUnauthorized {
			t.Errorf("with an expired token alice gets %d", code)
		}
	}
}
