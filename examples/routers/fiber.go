package main

import (
	"bytes"
	"net"
	"net/http"
	"net/url"

	"github.com/gofiber/fiber/v3"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
)

// withFiber: fiber is not built on net/http, so the guard gets a request made for it.
func withFiber(auth *httpauth.Auth) server {
	app := fiber.New()
	app.Get("/healthz", func(c fiber.Ctx) error { return c.SendString("ok") })
	app.Get("/orders", fiberGuard(auth.Require("orders:read")), func(c fiber.Ctx) error {
		return c.SendString("orders of " + apitoken.FromContext(c.Context()).Subject())
	})
	return fiberServer{app}
}

// fiberGuard makes a fiber middleware out of a guard. It copies what it takes out of the request, because fiber uses that memory for
// the next one. Fiber's own adaptor does not, and keeps the last of two Authorization headers, where a guard must see both.
func fiberGuard(guard func(http.Handler) http.Handler) fiber.Handler {
	return func(c fiber.Ctx) error {
		target, err := url.ParseRequestURI(string(c.Request().RequestURI()))
		if err != nil {
			return fiber.ErrBadRequest
		}
		from := c.RequestCtx()
		r := &http.Request{Method: string(c.Request().Header.Method()), URL: target, Host: string(c.Request().Host()), Header: http.Header{},
			RemoteAddr: from.RemoteAddr().String(), TLS: from.TLSConnectionState(), Body: http.NoBody}
		for name, value := range c.Request().Header.All() {
			r.Header.Add(string(name), string(value))
		}
		passed := false
		answer := fiberAnswer{header: http.Header{}, status: http.StatusOK}
		guard(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			passed = true
			c.SetContext(r.Context()) // with the token
		})).ServeHTTP(&answer, r.WithContext(c.Context()))
		for name, values := range answer.header {
			for _, v := range values {
				c.Response().Header.Add(name, v)
			}
		}
		if passed {
			return c.Next()
		}
		c.Response().Header.SetContentType(answer.header.Get("Content-Type"))
		return c.Status(answer.status).Send(answer.body.Bytes())
	}
}

// fiberAnswer keeps what a guard answers.
type fiberAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *fiberAnswer) Header() http.Header         { return a.header }
func (a *fiberAnswer) WriteHeader(status int)      { a.status = status }
func (a *fiberAnswer) Write(b []byte) (int, error) { return a.body.Write(b) }

// fiberServer is an app as the other servers are run.
type fiberServer struct{ app *fiber.App }

func (s fiberServer) Serve(l net.Listener) error {
	err := s.app.Listener(l, fiber.ListenConfig{DisableStartupMessage: true})
	if err == nil {
		err = http.ErrServerClosed
	}
	return err
}

func (s fiberServer) Close() error { return s.app.Shutdown() }
