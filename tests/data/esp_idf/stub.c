/* ESP-IDF on a computer, as far as tflite/esp32 needs it. The camera's frames are RGB565 on stdin:
   uint32_t width, height, length in bytes, then the bytes; a length of 0 is a frame that failed. At
   the end of stdin the program ends. Every pause requests all pages, and writes them to stdout as
   one line of uri and length and then the bytes. */
#include "stub.h"

#include <stdlib.h>
#include <string.h>

void app_main(void);

int main(void) { app_main(); }

const char *esp_err_to_name(esp_err_t error) { return error == ESP_OK ? "ESP_OK" : "ESP_FAIL"; }

void esp_deep_sleep(uint64_t time_in_us) {
  fprintf(stderr, "sleep %u s\n", (unsigned)(time_in_us / 1000000));
  exit(0);
}

void esp_restart(void) {
  fprintf(stderr, "restart\n");
  exit(0);
}

struct semaphore {
  int taken;
};

SemaphoreHandle_t xSemaphoreCreateMutex(void) { return calloc(1, sizeof(struct semaphore)); }

int xSemaphoreTake(SemaphoreHandle_t semaphore, TickType_t ticks) {
  if (ticks == 0 || semaphore->taken++) abort();
  return 1;
}

int xSemaphoreGive(SemaphoreHandle_t semaphore) {
  if (--semaphore->taken) abort();
  return 1;
}

static camera_fb_t frame;

esp_err_t esp_camera_init(const camera_config_t *config) {
  const int is_right = config->pixel_format == PIXFORMAT_RGB565 && config->fb_count == 1;
  return is_right && getenv("NO_CAMERA") == NULL ? ESP_OK : ESP_FAIL;
}

camera_fb_t *esp_camera_fb_get(void) {
  uint32_t about[3];
  if (frame.buf != NULL) abort(); /* there is but one, and it was not returned */
  if (fread(about, sizeof(about), 1, stdin) != 1) exit(0);
  if (about[2] == 0) return NULL;
  frame.width = about[0];
  frame.height = about[1];
  frame.len = about[2];
  frame.buf = malloc(frame.len);
  if (fread(frame.buf, frame.len, 1, stdin) != 1) abort();
  return &frame;
}

void esp_camera_fb_return(camera_fb_t *returned) {
  free(returned->buf);
  returned->buf = NULL;
}

esp_err_t nvs_flash_init(void) { return ESP_OK; }
esp_err_t esp_netif_init(void) { return ESP_OK; }
esp_err_t esp_event_loop_create_default(void) { return ESP_OK; }
esp_err_t example_connect(void) { return getenv("NO_WIFI") == NULL ? ESP_OK : ESP_FAIL; }

static httpd_uri_t pages[8];
static int page_count;

esp_err_t httpd_start(httpd_handle_t *server, const httpd_config_t *config) {
  *server = pages;
  return config->task_priority > 0 ? ESP_OK : ESP_FAIL;
}

esp_err_t httpd_register_uri_handler(httpd_handle_t server, const httpd_uri_t *page) {
  if (server != pages || page_count == 8) return ESP_FAIL;
  pages[page_count++] = *page;
  return ESP_OK;
}

esp_err_t httpd_resp_set_type(httpd_req_t *request, const char *type) {
  return request->uri != NULL && type != NULL ? ESP_OK : ESP_FAIL;
}

esp_err_t httpd_resp_send(httpd_req_t *request, const char *data, ssize_t length) {
  const size_t size = length < 0 ? strlen(data) : (size_t)length;
  printf("%s %u\n", request->uri, (unsigned)size);
  fwrite(data, 1, size, stdout);
  return ESP_OK;
}

void vTaskDelay(TickType_t ticks) {
  if (ticks == 0) abort();
  for (int i = 0; i < page_count; ++i) {
    httpd_req_t request = {pages[i].uri};
    if (pages[i].handler(&request) != ESP_OK) abort();
  }
}
