package main

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
)

// withEcho: echo brings its own adapter.
func withEcho(auth *httpauth.Auth) server {
	e := echo.New()
	e.GET("/healthz", func(c echo.Context) error { return c.String(http.StatusOK, "ok") })
	guarded := e.Group("", echo.WrapMiddleware(auth.Require("orders:read")))
	guarded.GET("/orders", func(c echo.Context) error {
		return c.String(http.StatusOK, "orders of "+apitoken.FromContext(c.Request().Context()).Subject())
	})
	return overHTTP(e)
}
