/* The newest result as a page (page.html), as /state.json, and the mask as /mask: one bit a pixel,
   row by row, the first in the highest bit, 1 for cloud. */
#include <stdio.h>

#include "ddunet_model.h"
#include "esp32.h"
#include "esp_event.h"
#include "esp_http_server.h"
#include "esp_log.h"
#include "esp_netif.h"
#include "freertos/FreeRTOS.h"
#include "freertos/semphr.h"
#include "nvs_flash.h"
#include "protocol_examples_common.h"
#include "sdkconfig.h"

#if CONFIG_SKY_WEB_PAGE

static const char *const TAG = "sky";

extern const char page_start[] asm("_binary_page_html_start");
extern const char page_end[] asm("_binary_page_html_end");

enum { PIXELS = DDUNET_MODEL_WIDTH * DDUNET_MODEL_HEIGHT };

/* What is shown; the server's task and the application's take turns. */
static SemaphoreHandle_t turn;
static uint8_t packed[SKY_PACKED_BYTES(PIXELS)];
static char state[128] = "{\"reason\": \"no frame yet\"}";

static void take_turn(void) { xSemaphoreTake(turn, portMAX_DELAY); }
static void end_turn(void) { xSemaphoreGive(turn); }

static esp_err_t send_page(httpd_req_t *request) {
  httpd_resp_set_type(request, "text/html");
  return httpd_resp_send(request, page_start, page_end - page_start);
}

static esp_err_t send_state(httpd_req_t *request) {
  char copy[sizeof(state)];
  take_turn();
  snprintf(copy, sizeof(copy), "%s", state);
  end_turn();
  httpd_resp_set_type(request, "application/json");
  return httpd_resp_send(request, copy, HTTPD_RESP_USE_STRLEN);
}

static esp_err_t send_mask(httpd_req_t *request) {
  static uint8_t copy[sizeof(packed)]; /* the server answers one request at a time */
  take_turn();
  for (size_t i = 0; i < sizeof(packed); ++i) copy[i] = packed[i];
  end_turn();
  httpd_resp_set_type(request, "application/octet-stream");
  return httpd_resp_send(request, (const char *)copy, sizeof(copy));
}

static const httpd_uri_t PAGES[] = {
    {.uri = "/", .method = HTTP_GET, .handler = send_page},
    {.uri = "/state.json", .method = HTTP_GET, .handler = send_state},
    {.uri = "/mask", .method = HTTP_GET, .handler = send_mask},
};

static esp_err_t connect_and_serve(void) {
  httpd_handle_t server = NULL;
  httpd_config_t config = HTTPD_DEFAULT_CONFIG();
  esp_err_t error = nvs_flash_init();
  if (error == ESP_OK) error = esp_netif_init();
  if (error == ESP_OK) error = esp_event_loop_create_default();
  if (error == ESP_OK) error = example_connect();
  if (error == ESP_OK) error = httpd_start(&server, &config);
  for (size_t i = 0; error == ESP_OK && i < sizeof(PAGES) / sizeof(PAGES[0]); ++i) {
    error = httpd_register_uri_handler(server, &PAGES[i]);
  }
  return error;
}

void web_start(void) {
  turn = xSemaphoreCreateMutex();
  if (turn == NULL) {
    ESP_LOGE(TAG, "no page: no memory");
    return;
  }
  const esp_err_t error = connect_and_serve();
  if (error != ESP_OK) ESP_LOGE(TAG, "no page: %s", esp_err_to_name(error));
}

void web_show(const uint8_t *mask, uint32_t width, uint32_t height, const sky_cover *cover) {
  if (turn == NULL) return;
  take_turn();
  sky_pack(mask, PIXELS, packed);
  snprintf(state, sizeof(state), "{\"percent\": %d.%d, \"okta\": %d, \"width\": %u, \"height\": %u}",
           (int)cover->permille / 10, (int)cover->permille % 10, (int)cover->okta, (unsigned)width,
           (unsigned)height);
  end_turn();
}

void web_cannot_tell(const char *reason) {
  if (turn == NULL) return;
  take_turn();
  snprintf(state, sizeof(state), "{\"reason\": \"%s\"}", reason);
  end_turn();
}

#else

void web_start(void) {}

void web_show(const uint8_t *mask, uint32_t width, uint32_t height, const sky_cover *cover) {
  (void)mask;
  (void)width;
  (void)height;
  (void)cover;
}

void web_cannot_tell(const char *reason) { (void)reason; }

#endif
